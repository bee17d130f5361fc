"""What became of a graph's products: TensorRT's layer information, read.

A document has ``Layers``, each with ``Name``, ``LayerType``, ``Inputs`` and, where they are told,
``Constants``, ``Weights`` and ``Metadata``; where the engine keeps no details, a name alone. Forms:

======  =====================================================================================
8.5-    type in ``Format/Datatype``: "Row major Int8 format"; "N/A due to dynamic shapes"
10.x    the same key: "Int8"; ``Metadata`` "[ONNX Layer: name][ONNX Layer: name]"
11.x    ``Datatype`` or ``DataType`` beside ``Format``; weights under ``Constants``
======  =====================================================================================

(developer guide, "Engine Inspector"; NVIDIA/TensorRT issues 4020 and 4397; "Migrating
IEngineInspector Usage from TensorRT 10.x to 11.x"; TensorRT-RTX 1.7.1's own.) A fused layer's name
joins its parts' by "+", and Myelin's ends in ``_myl0_7`` and may have dots as underscores: there
``Metadata`` has the names as they are. Metadata alone says nothing: the kernel that scales what a
product left names that product too. In a profile but the first, names end in `` [profile 1]``.
"""

from __future__ import annotations

import json
import re
from typing import Any, Iterable, Mapping, NamedTuple, Sequence

from slmq_edge.errors import Damaged

INT8 = re.compile(r"(?<![a-z])int8", re.IGNORECASE)
FLOAT = re.compile(r"half|float|fp16|fp32|bf16|bfloat16", re.IGNORECASE)
PROFILE = re.compile(r" ?\[profile (\d+)\]")
MYELIN_END = re.compile(r"_myl\d+_\d+$")
ONNX_NAME = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
# Types of layers that multiply matrices; a generated kernel does where its name says so.
PRODUCTS = re.compile(r"gemm|gemv|matrixmultiply|convolution|fullyconnected", re.IGNORECASE)
GENERATED = re.compile(r"^__myl_\w*(Fc|Gemm|Gemv|MatMul|Dot)")
FOREIGN = "ForeignNode"
TYPE_KEYS = ("Datatype", "DataType", "Format/Datatype", "Format/DataType")


ENGINE = "engine"  # layer information that was not asked of a profile


class Layer(NamedTuple):
    """One layer that multiplies matrices. first, weights: types of its operands, "" if untold."""

    names: frozenset[str]
    kind: str
    first: str
    weights: str


class Information(NamedTuple):
    """Layers of one profile. hidden: names of layers whose inside is not told."""

    profile: str
    layers: int
    products: tuple[Layer, ...]
    hidden: tuple[str, ...]


class Verdict(NamedTuple):
    """Of the products that must be int8 by int8: those that are, and why the others are not."""

    int8: tuple[str, ...]
    missing: Mapping[str, str]


def read(text: str) -> Mapping[str, Any]:
    """Parse a document.

    Raises:
        Damaged: it is none.
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise Damaged(f"TensorRT's layer information is no JSON: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("Layers"), list):
        raise Damaged("TensorRT's layer information has no list of layers")
    kept = [layer for layer in document["Layers"] if isinstance(layer, (dict, str))]
    return {**document, "Layers": kept}


def informations(texts: Mapping[str, str], profiles: Sequence[str]) -> Sequence[Information]:
    """Sum up what was told of an engine, profile by profile.

    Args:
        texts: a document for each profile, by name; or one of the engine as a whole, `ENGINE`.
        profiles: names, in the engine's order.
    """
    read_once = {name: read(text) for name, text in texts.items()}
    return [
        information(
            read_once.get(name, read_once.get(ENGINE, {"Layers": []})),
            name,
            index,
            through_context=name in read_once,
        )
        for index, name in enumerate(profiles)
        if read_once
    ]


def information(
    document: Mapping[str, Any], profile: str, index: int, *, through_context: bool
) -> Information:
    """Sum up the layers that a profile runs.

    Args:
        document: what was read.
        profile: its name, for the report.
        index: its number.
        through_context: an execution context of that profile was asked; where none of its layers
            bears a mark, all are its own. Of an engine by itself, unmarked ones are the first's.
    """
    tagged = [(layer, _profile(layer)) for layer in document["Layers"]]
    own = [layer for layer, tag in tagged if tag == index]
    if not own and through_context:
        own = [layer for layer, _ in tagged]
    details = [layer for layer in own if isinstance(layer, dict)]
    products = tuple(_product(layer) for layer in details if _multiplies(layer))
    names = [layer if isinstance(layer, str) else str(layer.get("Name", "")) for layer in own]
    hidden = [name for name in names if FOREIGN in name]
    hidden += [layer for layer in own if isinstance(layer, str) and FOREIGN not in layer]
    return Information(profile, len(own), products, tuple(hidden))


def verify(found: Sequence[Information], expected: Iterable[str]) -> Verdict:
    """Look for every expected product in every profile; all its layers must take int8."""
    by_name = [_by_name(one) for one in found]
    int8, missing = [], {}
    for name in expected:
        reasons = [
            reason
            for one, products in zip(found, by_name)
            for reason in _reasons(name, one, products)
        ]
        if reasons or not found:
            missing[name] = "; ".join(reasons) or "no layer information"
        else:
            int8.append(name)
    return Verdict(tuple(int8), missing)


def types(one: Information) -> Mapping[str, int]:
    """How many products take int8, floats, or what is not told."""
    counts = {"int8": 0, "float": 0, "untold": 0}
    for product in one.products:
        is_float = FLOAT.search(product.first)
        counts["int8" if INT8.search(product.first) else "float" if is_float else "untold"] += 1
    return counts


def _by_name(one: Information) -> Mapping[str, Sequence[Layer]]:
    found: dict[str, list[Layer]] = {}
    for product in one.products:
        for name in product.names:
            found.setdefault(name, []).append(product)
    return found


def _reasons(name: str, one: Information, products: Mapping[str, Sequence[Layer]]) -> Iterable[str]:
    """Why that product is not one of int8 by int8 in that profile; nothing where it is."""
    named = [*products.get(name, ()), *products.get(_sanitized(name), ())]
    layers = list(dict.fromkeys(named))
    if not layers:
        if one.hidden:
            yield f"{one.profile}: TensorRT does not tell what is inside of {_short(one.hidden[0])}"
        else:
            yield f"{one.profile}: no layer of that name multiplies"
    for layer in layers:
        if not INT8.search(layer.first):
            told = layer.first or "a type that is not told"
            yield f"{one.profile}: {layer.kind} takes {told}"
        elif FLOAT.search(layer.weights):
            yield f"{one.profile}: {layer.kind} takes weights of {layer.weights}"


def _multiplies(layer: Mapping[str, Any]) -> bool:
    if FOREIGN in str(layer.get("Name", "")):
        return False
    return bool(
        PRODUCTS.search(str(layer.get("LayerType", "")))
        or GENERATED.match(str(layer.get("Name", "")))
    )


def _product(layer: Mapping[str, Any]) -> Layer:
    inputs = _tensors(layer, "Inputs")
    return Layer(
        names=frozenset(_names(layer)),
        kind=str(layer.get("LayerType", "")),
        first=_type(inputs[0]) if inputs else "",
        weights=_weights(layer, inputs),
    )


def _names(layer: Mapping[str, Any]) -> Iterable[str]:
    yield from ONNX_NAME.findall(str(layer.get("Metadata", "")))
    whole = PROFILE.sub("", str(layer.get("Name", "")))
    for part in whole.split("+"):
        yield MYELIN_END.sub("", part.strip())


def _weights(layer: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]]) -> str:
    """The type of the matrix that a layer multiplies by, where it is told."""
    own = layer.get("Weights")
    if isinstance(own, dict):
        return str(own.get("Type", ""))
    constants = [one for one in inputs[1:] if "const" in str(one.get("Name", "")).lower()]
    matrices = [one for one in [*_tensors(layer, "Constants"), *constants] if _is_matrix(one)]
    return _type(matrices[0]) if matrices else ""


def _is_matrix(tensor: Mapping[str, Any]) -> bool:
    dimensions = tensor.get("Dimensions")
    return isinstance(dimensions, list) and sum(size != 1 for size in dimensions) > 1


def _tensors(layer: Mapping[str, Any], key: str) -> Sequence[Mapping[str, Any]]:
    values = layer.get(key)
    return [one for one in values if isinstance(one, dict)] if isinstance(values, list) else []


def _type(tensor: Mapping[str, Any]) -> str:
    return next((str(tensor[key]) for key in TYPE_KEYS if key in tensor), "")


def _profile(layer: Any) -> int:
    """The profile that a layer is of, by its name or its tensors'."""
    if isinstance(layer, str):
        found = PROFILE.search(layer)
        return int(found.group(1)) if found else 0
    names = [str(layer.get("Name", ""))] if isinstance(layer, dict) else []
    if isinstance(layer, dict):
        tensors = [*_tensors(layer, "Inputs"), *_tensors(layer, "Outputs")]
        names += [str(tensor.get("Name", "")) for tensor in tensors]
    tags = [int(found.group(1)) for found in map(PROFILE.search, names) if found]
    return tags[0] if tags else 0


def _sanitized(name: str) -> str:
    """As Myelin writes it where it takes no dots."""
    return name.replace(".", "_")


def _short(name: str) -> str:
    return name if len(name) <= 80 else f"{name[:60]}...{name[-17:]}"
