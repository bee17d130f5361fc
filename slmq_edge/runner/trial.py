"""Usage: python -m slmq_edge.runner.trial WORD ..., what may crash, in a process of its own.

``onnxruntime``: its version and the providers that it lists; ``run PROVIDER PRODUCT ...``: products
of `products` on one provider, an answer for each; ``cuda``: the GPU by CUDA's runtime. An answer is
a line that begins with `MARK`, for libraries print on stdout as well.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Sequence

from slmq_edge.runner.products import LENGTHS, PRODUCTS, Product

MARK = "trial: "
ERRORS_ONLY = 3


def main(arguments: Sequence[str]) -> int:
    word, rest = arguments[0], arguments[1:]
    try:
        if word == "onnxruntime":
            _tell(_listed())
        elif word == "cuda":
            _tell(_cuda())
        else:
            for name in rest[1:]:
                _tell({"product": name, **_tried(PRODUCTS[name](), rest[0])})
    except Exception as error:  # whatever it is, it is what was to be found out
        _tell({"error": _line(error)})
    return 0


def _tell(answer: dict[str, Any]) -> None:
    sys.stdout.write(f"\n{MARK}{json.dumps(answer)}\n")
    sys.stdout.flush()


def _listed() -> dict[str, Any]:
    import numpy
    import onnxruntime

    return {
        "version": onnxruntime.__version__,
        "numpy": numpy.__version__,
        "providers": list(onnxruntime.get_available_providers()),
    }


def _cuda() -> dict[str, Any]:
    from slmq_edge.runner.trt import cuda

    return dict(cuda.device()._asdict())


def _tried(product: Product, provider: str) -> dict[str, Any]:
    """``error``, or ``largest_error``, ``right`` and on which provider it ``ran_on``."""
    try:
        return _run(product, provider)
    except Exception as error:  # onnxruntime's own classes share no public base
        return {"error": _line(error)}


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _run(product: Product, provider: str) -> dict[str, Any]:
    import numpy as np
    import onnxruntime

    from slmq_edge.runner import profiled

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as scratch:
        options.profile_file_prefix = str(Path(scratch) / "operators")
        session = onnxruntime.InferenceSession(product.graph, options, providers=[provider])
        if session.get_providers()[0] != provider:
            session.end_profiling()
            return {"error": f"{provider} does not start"}
        largest = scale = 0.0
        for tokens in LENGTHS:
            activations = product.activations(tokens)
            (found,) = session.run(["y"], {"a": np.array(activations, product.dtype)})
            answer = np.array(product.answer(activations), np.float64)
            difference = np.abs(found.astype(np.float64) - answer).max()
            if not np.isfinite(difference):
                return {"error": "returns numbers that are not finite"}
            largest, scale = max(largest, float(difference)), max(scale, np.abs(answer).max())
        events = profiled.read(Path(session.end_profiling()))
    # Its own record says who ran what; copies between memories are nobody's product.
    operators = [one for step in profiled.steps_of(events) for one in step.operators]
    return {
        "largest_error": largest,
        "right": bool(largest <= product.tolerance * scale),
        "ran_on": sorted({one.provider for one in operators if "Memcpy" not in one.name}),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
