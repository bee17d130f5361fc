"""What a target's writer leaves in a bundle, and what the rest of the export needs of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from slmq_edge.checkpoint import CONFIG, Checkpoint
from slmq_edge.exporters.graph import Floats
from slmq_edge.exporters.lowering import Lowering

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
