"""The integer product alone, between extreme numbers: does this CPU's kernel saturate?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from slmq_edge.checkpoint import IntegerWeight
from slmq_edge.exporters import cuda, linears, rows, weights
from slmq_edge.exporters.graph import MICROSOFT, Builder
from slmq_edge.exporters.limits import LEAST_BLOCK
from slmq_edge.exporters.roundings import ZERO_POINT
from slmq_edge.scheme import Grid

DEPTH, WIDTH = 64, 48


def write_probe(gemm: Mapping[str, str], signed: bool = False) -> ir.Model:
    """``a`` uint8 [m, k] of zero point 128, 1..255, times extreme constants.

    Its float32 output ``y`` is the exact integer sum on a kernel that does not saturate;
    ``weights`` uint8 [k, n] returns the constants, zero point 128 too. gemm: how the graph
    multiplies (``lowering.integer_gemm``); each way that it does is probed, side by side.
    signed: the constants are multiplied as int8, as those of the signed graph are. Where the graph
    multiplies int8 by int8, so does the probe, less the zero points.
    """
    build = Builder()
    a = ir.val("a", ir.DataType.UINT8, ["m", DEPTH])
    ends = np.array([0, 255], np.uint8)
    extremes = np.random.default_rng(0).choice(ends, (DEPTH, WIDTH))
    extremes[:, :2] = ends
    # Constants of a batch take another path than the prepacked ones of a single product.
    kind = "batched" if "batch" in gemm else "single"
    if gemm["operator"] == cuda.OPERATOR:
        products = [_signed_product(build, a, extremes)]
    else:
        products = [_product(build, a, extremes, kind, signed)]
    stored = [extremes]
    if gemm["operator"] == rows.BLOCK_OPERATOR:
        for bits in map(int, gemm["bits"].split(" and ")):
            levels = extremes if bits == 8 else (extremes >> 4).astype(np.uint8)
            products.append(_block_product(build, a, levels, bits))
            centred = levels + np.uint8(ZERO_POINT - 2 ** (bits - 1))
            stored.append(centred)
    y = build.op("Concat", *products, name="y", axis=-1)
    shown = build.weight(np.concatenate(stored, axis=1), "extremes.all")
    returned = build.op("Identity", shown, name="weights")
    width = WIDTH * len(products)
    y.type, y.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["m", width])
    returned.type, returned.shape = ir.TensorType(ir.DataType.UINT8), ir.Shape([DEPTH, width])
    return build.model([a], [y, returned])


def _product(
    build: Builder, a: ir.Value, extremes: NDArray[np.uint8], name: str, signed: bool
) -> ir.Value:
    batched = name == "batched"
    levels = (extremes.astype(np.int16) - ZERO_POINT).astype(np.int8)
    stored = weights.store8(build, levels[None] if batched else levels, name, signed)
    one, zero = build.constant(1.0, np.float32), build.constant(ZERO_POINT, np.uint8)
    middle = weights.middle(signed)
    middles = build.constant(middle, middle.dtype)
    axis = build.constant([0], np.int64)
    x = build.op("Unsqueeze", a, axis, name="batch") if batched else a
    inputs = (x, stored, one, one, zero, middles)
    y = build.op(linears.OPERATOR, *inputs, name=name, domain=MICROSOFT)
    return build.op("Squeeze", y, axis, name=f"{name}.squeezed") if batched else y


def _signed_product(build: Builder, a: ir.Value, extremes: NDArray[np.uint8]) -> ir.Value:
    one, zero = build.constant(1.0, np.float32), build.constant(ZERO_POINT, np.uint8)
    centred = build.op("DequantizeLinear", a, one, zero, name="centred")
    x = build.op("Cast", centred, name="signed", to=ir.DataType.INT8)
    levels = build.weight((extremes.astype(np.int16) - ZERO_POINT).astype(np.int8), "extremes")
    sums = build.op(cuda.OPERATOR, x, levels, name="product")
    return build.op("Cast", sums, name="sums", to=ir.DataType.FLOAT)


def _block_product(build: Builder, a: ir.Value, levels: NDArray[np.uint8], bits: int) -> ir.Value:
    """The kernel rounds its input itself: to these very integers, where a block holds -127 or 127.

    levels: uint8 [k, n], the middle of which is zero.
    """
    one, zero = build.constant(1.0, np.float32), build.constant(ZERO_POINT, np.uint8)
    x = build.op("DequantizeLinear", a, one, zero, name=f"blocks{bits}.input")
    grid = Grid(bits, "channel", group=LEAST_BLOCK)
    signed = torch.from_numpy((levels.astype(np.int16) - 2 ** (bits - 1)).astype(np.int8).T)
    scale = torch.ones(WIDTH, DEPTH // LEAST_BLOCK)
    weight = IntegerWeight(signed.contiguous(), scale, None, grid)
    name = f"blocks{bits}"
    found = weights.blocks(build, weight, name)
    return linears.block_linear(build, x, found, weight, None, name, linears.INTEGER_INPUT)
