"""An engine behind the runner's `Decoder`: prompts in pieces, then a token at a time.

Prefill and decode are profiles of one engine, each with its context; all share one memory for
activations, since they run one after the other on one stream. Keys and values stay on the device,
in `rooms` that every run swaps. A session has one conversation at a time: a prefill takes the rooms
that the last one had. As in ``ort``, of two continuations of one cache the last one counts.
"""

from __future__ import annotations

import functools
from typing import Any, Iterator, NamedTuple

import numpy as np

from slmq_edge.errors import Damaged, SlmqError, Unsupported
from slmq_edge.runner.forward import Together
from slmq_edge.runner.greedy import Greedy
from slmq_edge.runner.trt import cuda as cuda_runtime
from slmq_edge.runner.trt import versions
from slmq_edge.runner.trt.buffers import Inputs, Logits
from slmq_edge.runner.trt.cache import Engine
from slmq_edge.runner.trt.contexts import PREFILL, Context, Loaded
from slmq_edge.runner.trt.recipe import KEPT, NEW, ROOM
from slmq_edge.runner.trt.rooms import PAST, Rooms, bucket
from slmq_edge.runner.trt.steps import Graphs, Step

TOKENS, POSITIONS, WANTED = "input_ids", "position_ids", "logits_positions"
COUNTED = {TOKENS: NEW, POSITIONS: NEW, WANTED: KEPT}
ONE_CONTEXT = "this engine gives its decoding profile to one context at a time"


class Cache(NamedTuple):
    """Positions seen so far: ``side`` says which set of rooms holds them, ``turn`` in whose use."""

    length: int
    side: int
    turn: int


class Session(Greedy):
    """An engine that is loaded and ready. ``limits``: of new, room and kept, what it takes."""

    batches = False
    appends = True  # a prompt may follow a cache: slots are chosen by position

    def __init__(self, engine: Engine) -> None:
        trt = versions.module()
        self._version = str(trt.__version__)
        self._engine, self._recipe = engine, engine.recipe
        self._cuda = cuda_runtime.load()
        self._integrated = cuda_runtime.device().integrated
        self._free_before, _ = self._cuda.memory()
        self._memory = cuda_runtime.Memory(self._cuda)
        self._stream = self._cuda.stream()
        self._loaded = Loaded(trt, engine.plan, engine.recipe)
        self.limits = self._loaded.limits
        self._check_inputs()
        self._prefill, self._decode = self._contexts()
        alone = len({id(one) for one in (self._prefill, *self._decode)}) == 3
        self._graphs = Graphs(None if alone else ONE_CONTEXT)
        self._inputs = self._staged(self.limits)
        self._logits = self._rows(1)
        self._input = self._staged({NEW: 1, KEPT: 1})
        self._row = self._rows(1)
        self._rooms: Rooms | None = None
        self._turn = 0
        self._steps: list[Step] = []

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of all layers' keys and values for one position; the rooms hold them twice."""
        return self._recipe.kv_bytes_per_token

    @property
    def most_positions(self) -> int | None:
        """How long a text can become: what the largest room holds."""
        return self.limits[ROOM]

    @property
    def together(self) -> Together:
        """What the largest shapes hold; a longer prompt, or more logits, come in pieces."""
        return Together(self.limits[NEW], self.limits[KEPT])

    def device_memory(self) -> dict[str, int]:
        """Bytes on the device by what they are for.

        engine: the plan, weights and kernels. activations, kv, io: as asked for. rest: what else
        the device says that it has given since the session began, to TensorRT or to others; not
        told where the device shares its memory with everything that runs.
        """
        asked = self._memory.by_part()
        parts = {"engine": self._loaded.plan_bytes}
        parts.update({part: asked.get(part, 0) for part in ("activations", "kv", "io")})
        if not self._integrated:
            free, _ = self._cuda.memory()
            taken = self._free_before - free
            parts["rest"] = max(0, taken - sum(parts.values()))
        return parts

    def facts(self) -> dict[str, Any]:
        """What ran, for the record."""
        sidecar = self._engine.sidecar
        return {
            "engine": self._engine.plan.stem,
            "tensorrt": self._version,
            "limits": dict(self.limits),
            "cuda_graph": self._graphs.fact(),
            "int8_asked": len(self._recipe.int8),
            "int8_missing": list(sidecar.get("int8_missing") or ()),
            "scheme_ran": sidecar.get("scheme_ran"),
            "int8_gemm_share": sidecar.get("int8_gemm_share"),
        }

    def prefill(
        self, tokens: Any, keep: int | None = None, room: int = 0, piece: int | None = None
    ) -> tuple[Any, Cache]:
        """Run a prompt from an empty cache, in pieces that the engine takes.

        Args:
            tokens: int64 [1, length].
            keep: for how many last positions logits are wanted; None: for all.
            room: how many steps will follow; more are possible, and slower.
            piece: tokens that run together, at most; by default what the engine takes.

        Returns:
            logits, float32 [1, kept, vocab], and the cache of ``length`` positions.

        Raises:
            SlmqError: the engine's rooms do not hold the prompt and what follows.
        """
        kept, cache = [], None
        for rows, grown in self._pieces(tokens, keep, room, piece):
            cache = grown
            kept.append(rows)
        assert cache is not None, "there is a piece at least"
        return np.concatenate(kept)[None], cache

    def logits(self, tokens: Any, keep: int) -> Iterator[Any]:
        """Run one whole text, which nothing follows, and keep no more than a piece of it.

        Args:
            tokens: int64 [1, length].
            keep: for how many last positions logits are wanted, at most ``length``.

        Yields:
            Logits, float32 [1, positions, vocab], ``keep`` positions in all.

        Raises:
            SlmqError: the engine's rooms do not hold the text.
        """
        for rows, _ in self._pieces(tokens, keep, 0, None):
            if len(rows):
                yield rows[None]

    def _pieces(
        self, tokens: Any, keep: int | None, room: int, piece: int | None
    ) -> Iterator[tuple[Any, Cache]]:
        """A prompt piece by piece: what is wanted of its logits [wanted, vocab], and the cache."""
        batch, length = tokens.shape
        if batch != 1 or length < 1:
            raise ValueError("an engine runs one prompt at a time, of at least one token")
        self._make_room(length + room)
        cache = Cache(0, 0, self._turn)
        first = 0 if keep is None else max(0, length - keep)
        longest = min(piece or self.limits[NEW], self.limits[NEW])
        while cache.length < length:
            start = cache.length
            size = min(longest, max(first - start, 0) + self.limits[KEPT], length - start)
            wanted = max(0, start + size - max(first, start))
            rows, cache = self._run(tokens[0, start : start + size], cache, wanted)
            yield rows, cache

    def step(self, tokens: Any, cache: Cache) -> tuple[Any, Cache]:
        """Run one more token: int64 [1, 1] -> float32 [1, 1, vocab] and the new cache.

        Raises:
            SlmqError: the engine's rooms are full.
        """
        if tokens.shape != (1, 1):
            raise ValueError("one token of one prompt at a time")
        if cache.turn != self._turn or self._rooms is None:
            raise ValueError("the rooms of this cache are another prompt's by now")
        if cache.length >= self._rooms.positions:
            cache = self._roomier(cache, self._rooms)
        self._input.arrays[TOKENS][0] = tokens[0, 0]
        self._input.arrays[POSITIONS][0] = cache.length
        self._steps[cache.side].run()
        self._cuda.wait(self._stream)
        done = cache._replace(length=cache.length + 1, side=1 - cache.side)
        return self._row.rows.copy()[None], done

    def close(self) -> None:
        """Give back what was taken on the device; the engine goes with the session itself."""
        for step in self._steps:
            step.free()
        for buffer in (self._inputs, self._input, self._logits, self._row):
            buffer.free()
        self._memory.give_all_back()
        self._cuda.destroy_stream(self._stream)

    def _run(self, tokens: Any, cache: Cache, wanted: int) -> tuple[Any, Cache]:
        """A piece of a prompt; of its last ``wanted`` positions the logits [wanted, vocab]."""
        new, kept = len(tokens), max(wanted, 1)  # of one position at least they are computed
        if kept > len(self._logits.rows):
            larger = self._rows(kept)  # may be refused: those that are there stay usable
            self._logits.free()
            self._logits = larger
        arrays = self._inputs.arrays
        arrays[TOKENS][:new] = tokens
        arrays[POSITIONS][:new] = np.arange(cache.length, cache.length + new)
        arrays[WANTED][:kept] = np.arange(new - kept, new)
        self._inputs.send(self._stream)
        self._enqueue(self._prefill, cache.side, self._inputs, self._logits, (new, kept))
        if wanted:
            self._logits.fetch(wanted, self._stream)
        self._cuda.wait(self._stream)
        done = cache._replace(length=cache.length + new, side=1 - cache.side)
        return self._logits.rows[:wanted].copy(), done

    def _step(self, side: int) -> None:
        """All of a decoding step from one side to the other, on the stream."""
        self._input.send(self._stream)
        self._enqueue(self._decode[side], side, self._input, self._row, (1, 1))
        self._row.fetch(1, self._stream)

    def _enqueue(
        self, context: Context, side: int, inputs: Inputs, logits: Logits, sizes: tuple[int, int]
    ) -> None:
        assert self._rooms is not None, "a prefill makes them"
        new, kept = sizes
        context.shape({NEW: new, ROOM: self._rooms.positions, KEPT: kept})
        context.bind({**inputs.addresses, **self._rooms.addresses(side), "logits": logits.address})
        context.enqueue(self._stream)

    def _make_room(self, positions: int) -> None:
        """Begin a conversation of so many positions, in the rooms that are there where they fit."""
        size = bucket(positions, self._checked(positions))
        if self._rooms is None or self._rooms.positions != size:
            if self._rooms is not None:
                self._rooms.free()
                self._rooms = None
            self._move_to(self._new_rooms(size))
        self._turn += 1

    def _roomier(self, cache: Cache, rooms: Rooms) -> Cache:
        """The same positions in rooms about twice as long; older caches stay behind."""
        most = self._checked(cache.length + 1)
        larger = self._new_rooms(bucket(2 * cache.length, most))
        larger.copy_from(rooms, cache.side, cache.length, self._stream)
        self._cuda.wait(self._stream)
        rooms.free()
        self._move_to(larger)
        self._turn += 1
        return cache._replace(turn=self._turn)

    def _checked(self, positions: int) -> int:
        """The most positions that a room can have, where so many are not more."""
        most = self.limits[ROOM]
        if positions > most:
            raise SlmqError(
                f"{positions} positions are more than this engine's rooms hold ({most}): "
                f"slmq-edge build BUNDLE --context {positions}"
            )
        return most

    def _new_rooms(self, size: int) -> Rooms:
        return Rooms(self._cuda, self._memory, self._recipe, self._stream, size)

    def _move_to(self, rooms: Rooms) -> None:
        """Steps are of one pair of rooms: their graphs hold its addresses and its size."""
        for step in self._steps:
            step.free()
        self._rooms = rooms
        self._steps = [
            Step(self._cuda, self._stream, functools.partial(self._step, side), self._graphs)
            for side in (0, 1)
        ]

    def _contexts(self) -> tuple[Context, tuple[Context, Context]]:
        """For prompts, and for steps from either side: three where the engine allows."""
        count = self._loaded.activation_bytes()
        memory = self._memory.take("activations", count, "activations")
        make = functools.partial(
            self._loaded.context, memory=memory, count=count, stream=self._stream
        )
        prefill = make(PREFILL)
        profile = self._loaded.decode_profile
        first = make(profile) or (prefill if profile == PREFILL else None)
        if prefill is None or first is None:
            raise SlmqError(f"TensorRT gives no context a profile: {self._loaded.refusal}")
        return prefill, (first, make(profile) or first)

    def _check_inputs(self) -> None:
        names = [port.name for port in self._recipe.inputs if not port.name.startswith(PAST)]
        if sorted(names) != sorted(COUNTED):
            raise Unsupported(f"this release does not know the inputs {', '.join(names)}")
        if "logits" not in self._loaded.types:
            raise Damaged("the recipe has no output logits")

    def _staged(self, counts: Any) -> Inputs:
        lengths = {name: counts[dimension] for name, dimension in COUNTED.items()}
        inputs = Inputs(self._cuda, self._memory, lengths, self._loaded.types)
        for array in inputs.arrays.values():
            array[:] = 0
        return inputs

    def _rows(self, count: int) -> Logits:
        return Logits(self._cuda, self._memory, count, self._recipe.vocab)


def open_engine(engine: Engine) -> Session:
    """Load an engine that `cache.find` has found.

    Raises:
        SlmqError: TensorRT, CUDA or the memory that it takes is not there, or the engine is not
            what its recipe says.
    """
    return Session(engine)
