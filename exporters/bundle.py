"""What a target's writer leaves in a bundle, and what the rest of the export needs of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmq_edge.checkpoint import CONFIG, Checkpoint
from slmq_edge.exporters import Wanted
from slmq_edge.exporters.floats import Floats
from slmq_edge.exporters.lowering import Lowering

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from slmq_edge.golden import Draft, Golden
    from slmq_edge.runner.golden import Decoder

# What optimum, and others, read beside a graph.
CONFIGS = (CONFIG, "generation_config.json")

# What could change the graph's numbers, by release or by machine, said aloud: the manifest carries
# it, the runner sets it, and every run shows it. A release that lacks an entry ignores it.
SESSION_OPTIONS = {
    "graph_optimization_level": "ORT_ENABLE_ALL",
    "session.disable_quant_qdq": "1",  # never into kernels of less exact integers
    "session.qdq_matmulnbits_accuracy_level": "0",  # nor into ones that round activations unasked
    "session.set_denormal_as_zero": "0",
    "optimization.enable_gelu_approximation": "0",
    "mlas.enable_gemm_fastmath_arm64_bfloat16": "0",  # float products stay float32
    "mlas.use_lut_gemm": "0",
    # Arm's library rounds the input of a product in blocks by token, and its scales to bfloat16.
    "mlas.disable_kleidiai": "1",
}


@dataclass(frozen=True)
class Written:
    """The graphs of a checkpoint in a bundle's folder.

    checkpoint: what they compute, which may not be all that was asked. graphs: files of the bundle,
    the first for every machine, each with the probe of its integers or ``None``. weights: bytes by
    part. runtime: the section of bundle.json. notes: what the writer has to say, a line each.
    """

    checkpoint: Checkpoint
    lowering: Lowering
    floats: Floats
    graphs: dict[str, str | None]
    weights: dict[str, int]
    runtime: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def graph(self) -> str:
        return next(iter(self.graphs))


@dataclass(frozen=True)
class Maker:
    """A target's writer, and how what it wrote runs here, to be checked.

    write: leaves a checkpoint's files in a folder. draft: guesses greedy continuations by what was
    written; ``None`` where nothing here runs it. verify: holds that to its golden prompts, and
    returns what bundle.json says of it; ``None`` likewise.
    """

    write: Callable[[Checkpoint, Path, Wanted], Written]
    draft: Callable[[Checkpoint, Path, Written], Draft | None]
    verify: Callable[[Path, Written, Golden], dict[str, Any] | None]


def guesses(session: Decoder) -> Draft:
    """What a session says greedily, behind tokens int64 [length]: int64 [so many]."""
    import numpy as np

    def guess(tokens: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        if count == 0:
            return tokens[:0]
        token, cache = session.first(tokens[None], count)
        found = [int(token[0, 0])]
        while len(found) < count:
            token, cache = session.next(token, cache)
            found.append(int(token[0, 0]))
        return np.array(found, np.int64)

    return guess
