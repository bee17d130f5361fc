"""TensorRT on the machine that runs a bundle: Python 3.8, numpy, ``tensorrt`` and CUDA's runtime.

recipe    what a bundle asks of an engine      build     from graph to engine, on this machine
engine    an engine behind the runner's `Decoder`
"""
