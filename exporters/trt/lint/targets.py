"""What each version of TensorRT takes, as far as it is written down.

[operators]  onnx-tensorrt's docs/operators.md of 8.5, 9.2 and 10.15; of 8.6, its opset
[changelog]  onnx-tensorrt's docs/Changelog.md, up to 10.15
[release]    NVIDIA/TensorRT's release notes of 11.5
[header]     NvInfer.h: IQuantizeLayer, IDequantizeLayer
An operator counts from the first version whose list or changelog names it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from slmq_edge.errors import UsageError, unknown

Version = tuple[int, int]

# JetPack 5.1, 6.0, 6.1 and 6.2, 7.2; and the one after, by its oldest.
TARGETS = ("8.5", "8.6", "10.3", "10.16", "11.x")
# Minor versions there are; the last of 11 is the newest that these tables know of.
MINORS = {8: range(5, 7), 9: range(4), 10: range(17), 11: range(6)}

# Newest opset [operators; release]. That of 10.0 to 10.14 is the one of 10.0's and 10.1's list.
OPSETS: tuple[tuple[Version, int], ...] = (
    ((8, 4), 17),
    ((9, 0), 19),
    ((10, 0), 20),
    ((10, 15), 24),
    ((11, 5), 25),
)
# INT4, which is of opset 21, is read since 10.0 [changelog], whatever the list says.
INT4_OPSET, INT4_SINCE = 21, (10, 0)

_SINCE_8_5 = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast
    Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace
    DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather
    GatherElements GatherND Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual
    GridSample GRU HardSwish HardSigmoid Identity If ImageScaler InstanceNormalization IsNaN
    LeakyRelu Less LessOrEqual Log LogSoftmax Loop LRN LSTM LpNormalization LpPool MatMul Max
    MaxPool Mean MeanVarianceNormalization Min Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or
    Pad ParametricSoftplus Pow PRelu QuantizeLinear RandomNormal RandomNormalLike RandomUniform
    RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax
    ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence
    RNN RoiAlign Round ScaledTanh Scan Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid
    Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan
    Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
"""
# The first version that is known to read an operator [operators; changelog].
OPERATORS: dict[str, Version] = {
    **dict.fromkeys(_SINCE_8_5.split(), (8, 5)),
    **dict.fromkeys(("GroupNormalization", "IsInf", "LayerNormalization"), (8, 6)),
    **dict.fromkeys(("CastLike", "Hardmax"), (9, 2)),
    "DeformConv": (10, 1),
    **dict.fromkeys(("BlackmanWindow", "HammingWindow", "HannWindow"), (10, 4)),
    "STFT": (10, 5),
    "Attention": (10, 14),
    **dict.fromkeys(("Gelu", "Mish"), (10, 15)),
    **dict.fromkeys(("RMSNormalization", "RotaryEmbedding", "TensorScatter"), (10, 15)),
}
# Inputs that must be constants, and the first version for which they need not be [the same two].
CONSTANT_INPUTS: dict[str, tuple[int, Version | None]] = {
    "Slice": (3, (10, 3)),
    "Pad": (3, (10, 4)),
    "Squeeze": (1, (10, 7)),
    "Unsqueeze": (1, (10, 7)),
    "CumSum": (1, None),
    **{name: (1, None) for name in OPERATORS if name.startswith("Reduce")},
}
# Types of tensors, by the name that ONNX gives them [operators; changelog].
TYPES: dict[str, Version] = {
    **dict.fromkeys(("FLOAT", "FLOAT16", "INT8", "INT32", "INT64", "BOOL"), (8, 5)),
    **dict.fromkeys(("BFLOAT16", "FLOAT8E4M3FN"), (9, 0)),
    "INT4": INT4_SINCE,
    "FLOAT4E2M1": (10, 8),
}
INT64_SINCE = (9, 0)  # before, INT64 inputs are bound as INT32 [changelog]
# Shape's start and end are left out of account by 8.4's importer, and read by 10.15's.
SHAPE_PART_SINCE = (10, 15)
FUNCTIONS_SINCE = (9, 0)  # a model's own functions [changelog]
STRONGLY_TYPED_SINCE = (10, 0)  # [header]


@dataclass(frozen=True)
class Target:
    """A version of TensorRT. name: as it was asked for."""

    name: str
    version: Version

    @property
    def opset(self) -> int:
        """The newest that its parser is documented to read."""
        return max(opset for since, opset in OPSETS if since <= self.version)

    @property
    def opset_seen(self) -> int:
        """The newest of which it is documented to read a part."""
        return max(self.opset, INT4_OPSET if self.version >= INT4_SINCE else 0)

    @property
    def is_8(self) -> bool:
        return self.version < (9, 0)

    def knows(self, operator: str) -> bool:
        """Whether an operator of the default domain is in its list."""
        return OPERATORS.get(operator, (99, 0)) <= self.version

    def takes(self, dtype: str) -> bool:
        """Whether it has tensors of a type."""
        return TYPES.get(dtype, (99, 0)) <= self.version

    def constant_input(self, operator: str) -> int | None:
        """The index of the input that must be a constant."""
        index, free_since = CONSTANT_INPUTS.get(operator, (0, (0, 0)))
        return index if free_since is None or self.version < free_since else None


def target(name: str) -> Target:
    """A version by its name: ``10.3``, ``10.3.0``, ``11``, or ``11.x`` for any of them.

    Raises:
        UsageError: no such version, or one that is not known here.
    """
    found = re.fullmatch(r"(\d+)(?:\.(\d+|x))?(?:\.\d+)*", name.strip())
    if found is not None and int(found[1]) in MINORS:
        minors = MINORS[int(found[1])]
        minor = minors[0] if found[2] in (None, "x") else int(found[2])
        if minor in minors:
            return Target(name.strip(), (int(found[1]), minor))
    raise UsageError(unknown("TensorRT version", name, TARGETS))


def since(oldest: str) -> tuple[str, ...]:
    """Those of ``TARGETS`` that are not older.

    Raises:
        UsageError: no such version.
    """
    least = target(oldest).version
    return tuple(name for name in TARGETS if target(name).version >= least)
