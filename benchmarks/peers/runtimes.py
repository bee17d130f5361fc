"""How each runtime loads a file, takes tokens and decodes; imported where the runtime lives.

No sampler of a Python wrapper is in the way: the next token is the argmax of the last position's
logits, taken by numpy, or by the runtime where it keeps its logits to itself (onnxruntime-genai).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

# Imported before loading is timed.
IMPORTS = {
    "ours": ("numpy", "onnxruntime", "slmq_edge.runner.ort"),
    "llama.cpp": ("numpy", "llama_cpp"),
    "genai": ("numpy", "onnxruntime_genai"),
    "optimum": ("numpy", "onnxruntime", "torch", "optimum.onnxruntime"),
}
BATCH = 512  # tokens that llama.cpp takes at once, its own tools' default too


class Runtime(Protocol):
    """One loaded model and one sequence of tokens."""

    @property
    def appends(self) -> bool:
        """Whether several tokens may follow onto a cache that is not empty."""

    def reset(self) -> None:
        """Forget the sequence."""

    def feed(self, tokens: Sequence[int]) -> None:
        """Run tokens after those seen so far."""

    def logits(self) -> Any:
        """Of the last position, before a token is chosen: float [vocab]."""

    def first(self) -> int:
        """The greedy next token after what was fed."""

    def step(self, token: int) -> int:
        """Run one token, the one chosen last, and choose the next."""


# Steps that our caches have room for: more than any repetition takes.
ROOM = 128


class Ours:
    """A bundle, through the runner that measures it on a device."""

    appends = False

    def __init__(self, path: Path, threads: int, context: int) -> None:
        from slmq_edge.runner import manifest, ort, probe

        bundle = manifest.read_bundle(path)
        graph = probe.graph_to_run(probe.run(path, bundle, threads))
        self._session = ort.open_bundle(path, bundle, threads, graph)

    def reset(self) -> None:
        self._cache: Any = None

    def feed(self, tokens: Sequence[int]) -> None:
        import numpy as np

        assert self._cache is None, "whole prompts only"
        self._logits, self._cache = self._session.prefill(np.array([tokens], np.int64), 1, ROOM)

    def logits(self) -> Any:
        return self._logits[0, -1]

    def first(self) -> int:
        return int(self.logits().argmax())

    def step(self, token: int) -> int:
        import numpy as np

        self._logits, self._cache = self._session.step(np.array([[token]], np.int64), self._cache)
        return self.first()


class LlamaCpp:
    """A GGUF file, through llama.cpp's C interface."""

    appends = True

    def __init__(self, path: Path, threads: int, context: int) -> None:
        import llama_cpp

        self._api: Any = llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._quiet, None)
        llama_cpp.llama_backend_init()
        wanted = llama_cpp.llama_model_default_params()
        wanted.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), wanted)
        if not self._model:
            raise RuntimeError(f"llama.cpp refuses {path.name}")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch = context, BATCH
        settings.n_threads = settings.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        if not self._context:
            raise RuntimeError(f"llama.cpp makes no context for {path.name}")
        vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab = llama_cpp.llama_vocab_n_tokens(vocab)

    def reset(self) -> None:
        memory = self._api.llama_get_memory(self._context)
        self._api.llama_memory_clear(memory, False)

    def feed(self, tokens: Sequence[int]) -> None:
        for start in range(0, len(tokens), BATCH):
            self._decode(tokens[start : start + BATCH])
        self._api.llama_synchronize(self._context)

    def logits(self) -> Any:
        import numpy as np

        found = self._api.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(found, (self._vocab,))

    def first(self) -> int:
        return int(self.logits().argmax())

    def step(self, token: int) -> int:
        self._decode([token])
        return self.first()

    def _decode(self, tokens: Sequence[int]) -> None:
        array = (self._api.llama_token * len(tokens))(*tokens)
        batch = self._api.llama_batch_get_one(array, len(tokens))  # logits of the last one
        status = self._api.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode returns {status}")


class GenAI:
    """A folder of onnxruntime-genai's model builder, through its generator."""

    appends = True

    def __init__(self, path: Path, threads: int, context: int) -> None:
        import onnxruntime_genai

        self._api: Any = onnxruntime_genai
        config = onnxruntime_genai.Config(str(path))
        options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = onnxruntime_genai.Model(config)
        description = json.loads((path / "genai_config.json").read_text("utf-8"))
        self._vocab = int(description["model"]["vocab_size"])
        self._context = context

    def reset(self) -> None:
        parameters = self._api.GeneratorParams(self._model)
        # min_length: random weights may say end of text, and decoding would end there.
        parameters.set_search_options(
            do_sample=False, max_length=self._context, min_length=self._context
        )
        self._generator = self._api.Generator(self._model, parameters)

    def feed(self, tokens: Sequence[int]) -> None:
        import numpy as np

        self._generator.append_tokens(np.array([tokens], np.int32))

    def logits(self) -> Any:
        return self._generator.get_logits().reshape(-1, self._vocab)[-1]

    def first(self) -> int:
        self._generator.generate_next_token()
        return int(self._generator.get_next_tokens()[0])

    def step(self, token: int) -> int:
        return self.first()  # the token chosen last is part of the generator's sequence


class Optimum:
    """A folder of optimum's export, through ORTModelForCausalLM as it comes."""

    appends = True

    def __init__(self, path: Path, threads: int, context: int) -> None:
        import onnxruntime
        import torch
        from optimum.onnxruntime import ORTModelForCausalLM

        torch.set_num_threads(1)  # it only moves tensors: ONNX Runtime computes
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._model = ORTModelForCausalLM.from_pretrained(path, session_options=options)

    def reset(self) -> None:
        self._cache: Any = None
        self._length = 0

    def feed(self, tokens: Sequence[int]) -> None:
        import torch

        length = self._length + len(tokens)
        output = self._model(
            input_ids=torch.tensor([list(tokens)]),
            attention_mask=torch.ones((1, length), dtype=torch.int64),
            position_ids=torch.arange(self._length, length)[None],
            past_key_values=self._cache,
            use_cache=True,
        )
        self._logits, self._cache, self._length = output.logits, output.past_key_values, length

    def logits(self) -> Any:
        return self._logits[0, -1].numpy()

    def first(self) -> int:
        return int(self.logits().argmax())

    def step(self, token: int) -> int:
        self.feed([token])
        return self.first()


RUNTIMES: dict[str, type[Runtime]] = {
    "ours": Ours,
    "llama.cpp": LlamaCpp,
    "genai": GenAI,
    "optimum": Optimum,
}
