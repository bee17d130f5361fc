"""The integer product alone, between extreme numbers: does this CPU's kernel saturate?"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from slmq_edge.exporters import linears
from slmq_edge.exporters.graph import MICROSOFT, Builder
from slmq_edge.exporters.roundings import ZERO_POINT

DEPTH, WIDTH = 64, 48


def write_probe(batched: bool = False) -> ir.Model:
    """``a`` uint8 [m, k] of zero point 128 times extreme constants.

    Its float32 output ``y`` is the exact integer sum on a kernel that does not saturate;
    ``weights`` uint8 [k, n] returns the constants, zero point 128 too. batched: as groups of
    inputs are multiplied, whose constants take another path than the prepacked one.
    """
    build = Builder()
    a = ir.val("a", ir.DataType.UINT8, ["m", DEPTH])
    ends = np.array([0, 255], np.uint8)
    extremes = np.random.default_rng(0).choice(ends, (DEPTH, WIDTH))
    extremes[:, :2] = ends
    stored = build.weight(extremes[None] if batched else extremes, "extremes")
    one, zero = build.constant(1.0, np.float32), build.constant(ZERO_POINT, np.uint8)
    axis = build.constant([0], np.int64)
    x = build.op("Unsqueeze", a, axis, name="batch") if batched else a
    inputs = (x, stored, one, one, zero, zero)
    name = "batched" if batched else "y"
    y = build.op(linears.OPERATOR, *inputs, name=name, domain=MICROSOFT)
    if batched:
        y = build.op("Squeeze", y, axis, name="y")
        weights = build.op("Squeeze", stored, axis, name="weights")
    else:
        weights = build.op("Identity", stored, name="weights")
    y.type, y.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["m", WIDTH])
    weights.type, weights.shape = ir.TensorType(ir.DataType.UINT8), ir.Shape([DEPTH, WIDTH])
    return build.model([a], [y, weights])
