"""TensorRT on the machine that runs a bundle: Python 3.8, numpy, ``tensorrt`` and CUDA's runtime.

recipe    what a bundle asks of an engine      shapes    how large its inputs may be
versions  what differs between releases        commands  trtexec's lines for each of them
build     from graph to engine, kept           api, trtexec, memory, layers, sidecar, outcome
cache     the engine for this machine          report    what a machine can say
engine    an engine behind the runner's `Decoder`
cuda      CUDA's runtime                       log       what TensorRT says
"""
