"""One bundle's graph in ONNX Runtime: whole prompts first, then a token at a time.

Names follow optimum's convention: ``input_ids``, ``attention_mask``, ``position_ids`` and
``past_key_values.{i}.key|value`` go in, ``logits`` and ``present.{i}.key|value`` come out.
``logits_to_keep`` is an overridable initializer: for how many of the last positions logits
are computed (default: all); a graph for TensorRT takes their numbers, ``logits_positions``.
Caches pass from step to step as OrtValues, never through numpy;
where the graph's metadata says that it may, it writes new positions into the buffers it read.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
from pathlib import Path
from typing import Any, Iterator, Mapping, NamedTuple

import numpy as np

from slmq_edge.errors import MissingExtra, SlmqError, Unsupported
from slmq_edge.runner.asked import (
    ON_CPU,
    Provider,
    minimum_version,
    provider_of,
    session_settings,
)
from slmq_edge.runner.greedy import Greedy
from slmq_edge.runner.manifest import GRAPH
from slmq_edge.runner.memory import let_go, of_folder, return_memory

DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
KEEP, POSITIONS = "logits_to_keep", "logits_positions"
KV_CACHE, IN_PLACE = "kv_cache", "in place"  # an entry of the graph's metadata
LEVEL = "graph_optimization_level"  # the one setting that is no configuration entry everywhere
APPENDS_FROM = "1.23"
PIECE = 512  # tokens of a prompt that run together, where they need not all
STEPS = 128  # after so many, the rows that they looked up are given back
QUIET = 3  # errors only: warnings about optimizations would end up in the error report


class Cache(NamedTuple):
    """Keys and values of the positions seen so far; only a `Session` looks inside.

    In a graph that writes them in place, a step changes the buffers behind this cache beyond its
    ``length``, and nothing before it: of two continuations of one cache, the last one counts.
    """

    values: Mapping[str, Any]  # input name -> OrtValue [batch, kv_heads, room, head_dim]
    length: int
    room: int  # positions that the buffers hold
    binding: Any  # where the buffers are bound as inputs, and in place as outputs too


class Session(Greedy):
    """A graph that is loaded and ready; ``threads`` is the number ONNX Runtime computes with.

    A prompt's rows all have the same length. Causality makes padding on the right harmless
    for the logits of the positions before it; padding on the left is not supported. trace: a
    folder for ONNX Runtime's own record of every operator, which slows it down.
    """

    batches = True

    def __init__(
        self,
        graph: Path,
        threads: int,
        settings: Mapping[str, str],
        trace: Path | None = None,
        *,
        provider: Provider = ON_CPU,
    ) -> None:
        self._runtime = load_onnxruntime()
        self._session = open_session(graph, threads, settings, trace, provider=provider)
        self._memory = provider.memory
        self._mapped = of_folder(graph.parent)  # for as long as the session lives
        self._give_back()  # what was folded at load, and read to be packed
        outputs = {node.name: node for node in self._session.get_outputs()}
        inputs = self._session.get_inputs()
        self._inputs = {node.name for node in inputs}
        self._past = {n.name: n for n in inputs if n.name.startswith("past_key_values.")}
        overridable = {node.name for node in self._session.get_overridable_initializers()}
        self._keeps = KEEP in overridable or POSITIONS in self._inputs
        # A prompt's activations are many times a step's: their memory is given back behind it.
        self._shrinking = self._runtime.RunOptions()
        self._shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        about = self._session.get_modelmeta().custom_metadata_map
        self._in_place = about.get(KV_CACHE) == IN_PLACE
        if "input_ids" not in self._inputs or not self._past or "logits" not in outputs:
            raise Unsupported(f"{graph} is not a decoder with a cache: no input_ids or past")
        for name, node in self._past.items():
            if node.type not in DTYPES or not all(isinstance(node.shape[d], int) for d in (1, 3)):
                raise Unsupported(f"{graph}: {name} is {node.type} {node.shape}")
        self._of_logits = outputs["logits"]

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes by which the caches of all layers grow for one token."""
        return sum(
            node.shape[1] * node.shape[3] * np.dtype(DTYPES[node.type]).itemsize
            for node in self._past.values()
        )

    @property
    def most_positions(self) -> int | None:
        """How long a text can become here: as long as the model's context."""
        return None

    @property
    def together(self) -> None:
        """A prompt of any length that is one piece, and all of its logits."""
        return None

    def device_memory(self) -> Mapping[str, int] | None:
        """What is taken is the process's own, or not told."""
        return None

    def facts(self) -> Mapping[str, Any]:
        """Nothing that the bundle does not say."""
        return {}

    def end_trace(self) -> Path:
        """Close the record of operators and return its file."""
        return Path(self._session.end_profiling())

    @property
    def appends(self) -> bool:
        """Whether several tokens on a cache that is not empty are right (ONNXRUNTIME 3)."""
        return self._in_place and is_at_least(APPENDS_FROM)

    def prefill(
        self, tokens: Any, keep: int | None = None, room: int = 0, piece: int | None = None
    ) -> tuple[Any, Cache]:
        """Run whole prompts from an empty cache.

        Args:
            tokens: int64 [batch, length].
            keep: for how many last positions logits are wanted; None: for all.
            room: how many steps will follow; more are possible, and slower.
            piece: tokens that run together, where the runtime can append, which it can to one
                row; by default `PIECE`. The attention kernel holds a score for each of them and
                each that it sees.

        Returns:
            logits, float32 [batch, kept, vocab], and the cache of ``length`` positions.
        """
        kept, cache = [], None
        for logits, grown in self._pieces(tokens, keep, room, piece, self._shrinking):
            cache = grown
            if logits is not None:
                kept.append(logits)
        assert cache is not None, "there is a piece at least"
        self._give_back()
        return (kept[0] if len(kept) == 1 else np.concatenate(kept, axis=1)), cache

    def logits(self, tokens: Any, keep: int) -> Iterator[Any]:
        """Run whole texts, which nothing follows, and keep no more than a piece of them.

        Between texts no memory is given back: that takes half of a small model's time.

        Args:
            tokens: int64 [batch, length].
            keep: for how many last positions logits are wanted, at most ``length``.

        Yields:
            Logits, float32 [batch, positions, vocab], ``keep`` positions in all.
        """
        for logits, _ in self._pieces(tokens, keep, 0, None, None):
            if logits is not None:
                yield logits
            del logits

    def _pieces(
        self, tokens: Any, keep: int | None, room: int, piece: int | None, options: Any
    ) -> Iterator[tuple[Any, Cache]]:
        """A prompt piece by piece: what is wanted of its logits, or None, and the cache so far."""
        batch, length = tokens.shape
        if length < 1:
            raise ValueError("a prompt has at least one token")
        held = length + room if self._in_place else 0
        cache = self._cache(self._buffers(batch, held), 0, held)
        size = (piece or PIECE) if self.appends and batch == 1 else length
        for start in range(0, length, size):
            part = tokens[:, start : start + size]
            # Of logits, at least one position's are computed, wanted or not.
            unseen = length - start - part.shape[1]
            wanted = part.shape[1] if keep is None else keep - unseen
            some = None if keep is None else min(max(wanted, 1), part.shape[1])
            logits, cache = self._run(part, cache, some, options)
            yield (logits if wanted > 0 else None), cache
            del logits  # before the next piece's are there

    def step(self, tokens: Any, cache: Cache) -> tuple[Any, Cache]:
        """Run one more token: int64 [batch, 1] -> float32 [batch, 1, vocab] and the new cache.

        Only one: several tokens on a cache that is not empty are silently wrong with
        GroupQueryAttention of onnxruntime 1.19 (error of 3.1 in a logit, measured).
        """
        if tokens.shape[1] != 1:
            raise ValueError("one token at a time: onnxruntime 1.19 errs on more")
        if self._in_place and cache.length >= cache.room:
            cache = self._roomier(cache, tokens.shape[0])
        if cache.length % STEPS == 0:
            let_go(self._mapped)
        if cache.length == cache.room // 2 + 1:
            return_memory()  # of a cache that was outgrown: its holder has let go of it by now
        return self._run(tokens, cache, 1)

    def _give_back(self) -> None:
        return_memory()
        let_go(self._mapped)

    def _run(
        self, tokens: Any, cache: Cache, keep: int | None, options: Any = None
    ) -> tuple[Any, Cache]:
        length = cache.length + tokens.shape[1]
        binding = cache.binding
        feeds = {n: self._value(a) for n, a in self._feeds(tokens, cache.length, keep).items()}
        for name, value in feeds.items():  # the binding holds their memory no longer than we do
            binding.bind_ortvalue_input(name, value)
        if self._in_place:  # no output but the logits is asked for: there are two a layer
            logits = self._logits(tokens, keep)
            value = self._value(logits)
            binding.bind_ortvalue_output("logits", value)
            self._session.run_with_iobinding(binding, options)
            return _last(logits, keep), cache._replace(length=length)
        binding.bind_output("logits")  # memory of its own: what it was bound to is the caller's
        self._session.run_with_iobinding(binding, options)
        results = binding.get_outputs()
        found = self._cache(dict(zip(cache.values, results[1:])), length, length)
        return _last(results[0].numpy(), keep), found

    def _logits(self, tokens: Any, keep: int | None) -> Any:
        """Room for them, [batch, kept, vocab]."""
        batch, new = tokens.shape
        kept = new if keep is None or not self._keeps else min(keep, new)
        return np.empty((batch, kept, self._of_logits.shape[-1]), DTYPES[self._of_logits.type])

    def _cache(self, values: Mapping[str, Any], length: int, room: int) -> Cache:
        binding = self._session.io_binding()
        binding.bind_output("logits")  # the first: so that results come in this order
        for name, value in values.items():
            present = name.replace("past_key_values.", "present.")
            binding.bind_ortvalue_input(name, value)
            if self._in_place:
                binding.bind_ortvalue_output(present, value)
            else:
                binding.bind_output(present, self._memory)
        return Cache(values, length, room, binding)

    def _feeds(self, tokens: Any, past: int, keep: int | None) -> dict[str, Any]:
        """All inputs but the caches."""
        batch, new = tokens.shape
        feeds = {"input_ids": tokens.astype(np.int64)}
        if "attention_mask" in self._inputs:
            feeds["attention_mask"] = np.ones((batch, past + new), np.int64)
        if "position_ids" in self._inputs:
            feeds["position_ids"] = np.tile(np.arange(past, past + new, dtype=np.int64), (batch, 1))
        if POSITIONS in self._inputs:
            feeds[POSITIONS] = np.arange(new)[-(keep or new) :]
        elif keep is not None and self._keeps:
            feeds[KEEP] = np.array([keep], np.int64)
        return feeds

    def _buffers(self, batch: int, room: int) -> dict[str, Any]:
        """Zeros, which cost no memory before they are written."""
        return {
            name: self._value(
                np.zeros((batch, node.shape[1], room, node.shape[3]), DTYPES[node.type]),
                self._memory,
            )
            for name, node in self._past.items()
        }

    def _roomier(self, cache: Cache, batch: int) -> Cache:
        """The same positions in buffers twice as long."""
        room = 2 * max(cache.room, 1)
        values = {}
        for name, node in self._past.items():
            longer = np.zeros((batch, node.shape[1], room, node.shape[3]), DTYPES[node.type])
            longer[:, :, : cache.length] = cache.values[name].numpy()[:, :, : cache.length]
            values[name] = self._value(longer, self._memory)
        return self._cache(values, cache.length, room)

    def _value(self, array: Any, memory: str = "cpu") -> Any:
        return self._runtime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), memory)


def _last(logits: Any, keep: int | None) -> Any:
    """Those that are wanted, float32, of [batch, positions, vocab]."""
    wanted = logits if keep is None else logits[:, -keep:]
    return wanted.astype(np.float32, copy=False)


def open_bundle(
    folder: Path,
    bundle: Mapping[str, Any],
    threads: int,
    graph: str = GRAPH,
    trace: Path | None = None,
) -> Session:
    """Open a graph of a verified bundle with the settings it asks for; trace: see `Session`."""
    check_runtime(minimum_version(bundle))
    settings = session_settings(bundle)
    return Session(folder / graph, threads, settings, trace, provider=provider_of(bundle))


def open_session(
    graph: Path,
    threads: int,
    settings: Mapping[str, str],
    trace: Path | None = None,
    *,
    provider: Provider = ON_CPU,
) -> Any:
    """Open any ONNX file. Spinning between operators stays at its default.

    Beside another provider, the CPU computes shapes; it never takes a whole graph over.
    """
    check_provider(provider)
    runtime = load_onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads  # a number given is a number used: never 0
    options.inter_op_num_threads = 1
    options.log_severity_level = QUIET
    if trace is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(trace / "operators")
    for name, value in settings.items():
        if name != LEVEL:
            options.add_session_config_entry(name, value)
        elif hasattr(runtime.GraphOptimizationLevel, value):
            options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, value)
        else:
            raise Unsupported(f"onnxruntime {runtime.__version__} has no {LEVEL} {value}")
    chosen = [(provider.name, dict(provider.options))]
    if provider.name != ON_CPU.name:
        chosen.append((ON_CPU.name, {}))
    try:
        session = runtime.InferenceSession(str(graph), options, providers=chosen)
    except Exception as error:  # onnxruntime's own classes share no public base
        reason = " ".join(str(error).split())
        raise SlmqError(f"onnxruntime {runtime.__version__} refuses {graph}: {reason}") from error
    if session.get_providers()[0] != provider.name:
        raise Unsupported(
            f"onnxruntime {runtime.__version__} cannot start {provider.name} here and would run on "
            "the CPU instead: its driver, CUDA or cuDNN is missing or of another version"
        )
    return session


def check_provider(provider: Provider) -> None:
    """Refuse an onnxruntime that was built without what a bundle runs on."""
    runtime = load_onnxruntime()
    if provider.name not in runtime.get_available_providers():
        raise Unsupported(
            f"this bundle runs on {provider.name}, which the onnxruntime {runtime.__version__} "
            "installed here does not have: pip install 'slmq-edge[gpu]' in place of onnxruntime, "
            "on a machine with an NVIDIA GPU, or export with --target ort for a CPU"
        )


def load_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("onnxruntime", "cpu") from error
    return onnxruntime


def check_runtime(minimum: str | None, installed: Mapping[str, str] | None = None) -> None:
    """Refuse an onnxruntime that is absent, older than ``minimum``, or installed twice.

    Args:
        minimum: the oldest version that runs the bundle, for example ``1.19``.
        installed: distribution -> version; by default what is installed here.
    """
    found = distributions() if installed is None else dict(installed)
    if len(found) > 1:
        raise SlmqError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: "
            "pip uninstall both, then install one"
        )
    if not found:  # a system package leaves no metadata
        found = {"onnxruntime": load_onnxruntime().__version__}
    ((name, version),) = found.items()
    if minimum is not None and _numbers(version) < _numbers(minimum):
        raise SlmqError(f"{name} {version} is too old for this bundle: it needs {minimum} or newer")


def is_at_least(version: str) -> bool:
    """Whether the onnxruntime here is of this version or newer."""
    return _numbers(load_onnxruntime().__version__) >= _numbers(version)


def distributions() -> dict[str, str]:
    found = {}
    for name in DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _numbers(version: str) -> list[int]:
    """Return the first three numbers of a version: 1.19.0rc1 -> [1, 19, 0]."""
    numbers = [int(number) for number in re.findall(r"\d+", version)[:3]]
    return numbers + [0] * (3 - len(numbers))
