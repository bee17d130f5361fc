"""onnxruntime, faked for a child process: providers that crash, hang, fall back, lie and chatter.

A test copies this file into a folder of PYTHONPATH as ``onnxruntime.py``. Apart from what a
provider's name says, all products are right and on that provider.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from slmq_edge.runner.products import PRODUCTS

__version__ = "1.99.0"
CRASHES, HANGS, SILENT, LIES, CUDA, CPU = (
    "CrashesExecutionProvider",  # with integers
    "HangsExecutionProvider",
    "SilentExecutionProvider",  # lists itself, and leaves everything to the CPU
    "LiesExecutionProvider",  # by one, in the last product
    "CUDAExecutionProvider",  # whose library is missing
    "CPUExecutionProvider",
)
LOG = (
    "2026-01-02 03:04:05.678 [E:onnxruntime:Default, provider_bridge.cc:1] Failed to load library "
    "libonnxruntime_providers_cuda.so with error: libcublasLt.so.12: cannot open shared object file"
)


def get_available_providers() -> list[str]:
    return os.environ.get("FAKE_PROVIDERS", f"{CUDA} {CPU}").split()


class SessionOptions:
    pass


class InferenceSession:
    def __init__(self, graph: bytes, options: Any, providers: Sequence[str]) -> None:
        (self._provider,) = providers
        self._options, self._product = (
            options,
            next(product for make in PRODUCTS.values() if (product := make()).graph == graph),
        )
        sys.stdout.write("a library that chatters on stdout")
        if self._provider == CRASHES and b"MatMulInteger" in graph:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.kill(os.getpid(), signal.SIGSEGV)
        if self._provider == HANGS:
            time.sleep(600)
        if self._provider == CUDA:
            sys.stderr.write(LOG + "\n")

    def get_providers(self) -> list[str]:
        return [CPU] if self._provider == CUDA else [self._provider, CPU]

    def run(self, names: Sequence[str], feeds: dict[str, Any]) -> list[Any]:
        answer = np.array(self._product.answer(feeds["a"].tolist()))
        wrong = self._provider == LIES and b"MatMulInteger" in self._product.graph
        return [answer + int(wrong)]

    def end_profiling(self) -> str:
        ran_on = CPU if self._provider == SILENT else self._provider
        names = (("MatMul", ran_on), ("MemcpyToHost", CPU))
        events = [{"name": "model_run", "ts": 0, "dur": 9}]
        events += [
            {
                "name": f"{name}_kernel_time",
                "cat": "Node",
                "ts": 1,
                "dur": 1,
                "args": {
                    "op_name": name,
                    "provider": provider,
                    "input_type_shape": [],
                    "output_type_shape": [],
                },
            }
            for name, provider in names
        ]
        path = f"{self._options.profile_file_prefix}.json"
        with open(path, "w", encoding="utf-8") as file:
            json.dump(events, file)
        return path
