"""What ran, seen and not believed: ONNX Runtime's own record of every operator, summed up.

The record is a JSON list of events in Chrome's trace format, times in microseconds. An operator's
event has ``args`` with its name after all fusions (``op_name``), its provider, and the types and
shapes of its inputs and outputs; a run of the whole graph is an event ``model_run`` around its
operators. A weight that a kernel has packed for itself is no longer among the inputs. Hence

    multiply-adds = (elements of the output) x (width of the first input)

for every operator that multiplies matrices, and such an operator multiplies by a weight where its
second input is packed away or ``parameter_size`` counts bytes of constants: attention's own
products, of two activations, are left out, as they are in a bundle's report.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, Collection, Mapping, NamedTuple, Sequence

from slmq_edge.errors import Damaged, SlmqError, Unsupported
from slmq_edge.runner import golden, manifest, ort, probe

INTEGER_GEMMS = (
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "QLinearMatMul",
    "QGemm",
)
# Of these the record does not say whether they multiply integers: the bundle does.
OTHER_GEMMS = ("MatMul", "FusedMatMul", "Gemm", "FusedGemm", "MatMulNBits")
MICROSECOND = 1e-6
SUFFIX = "_kernel_time"


class Operator(NamedTuple):
    """One kind of operator in one run. macs: multiply-adds by weights; 0 for all but GEMMs."""

    name: str
    provider: str
    calls: int
    seconds: float
    macs: int
    integer: bool


class Step(NamedTuple):
    """One run of a graph, its operators by falling time. graph: which of the bundle's."""

    operators: Sequence[Operator]
    graph: str = ""

    @property
    def seconds(self) -> float:
        return sum(one.seconds for one in self.operators)

    @property
    def macs(self) -> int:
        return sum(one.macs for one in self.operators)

    @property
    def integer_share(self) -> float:
        """Of the multiply-adds by weights, those between integers; 0 where there are none."""
        integers = sum(one.macs for one in self.operators if one.integer)
        return integers / self.macs if self.macs else 0.0


def run(folder: Path, bundle: Mapping[str, Any], threads: int) -> dict[str, Step]:
    """Run a bundle's graph with the record on: ``prefill`` of a prompt, and ``decode`` of a token.

    Of its graphs, the one that a measurement would run here.

    Both are run once before, so that nothing is counted that happens only once. The head multiplies
    the last position alone, as it does when text is generated.

    Raises:
        SlmqError: the runtime is too old or refuses the graph, or its record cannot be read.
        Unsupported: a bundle that onnxruntime does not run.
    """
    if manifest.kind_of(bundle) == manifest.TORCH:
        raise Unsupported(
            f"{folder.name} is for torch, of whose operators onnxruntime's record says nothing: "
            "what its modules multiply, inspect without --run says"
        )
    if manifest.kind_of(bundle) == manifest.TRT:
        raise Unsupported(
            f"{folder.name} is for TensorRT, of whose operators onnxruntime's record says nothing: "
            "what an engine's layers are, slmq-edge build says"
        )
    return traced(folder, bundle, threads, probe.graph_to_run(probe.run(folder, bundle, threads)))


def traced(
    folder: Path, bundle: Mapping[str, Any], threads: int, graph: str, prompt_tokens: int = 16
) -> dict[str, Step]:
    """See `run`; of one of a bundle's graphs."""
    prompt = golden.prompt_tokens(golden.golden_file(folder, bundle), prompt_tokens)
    tokens = prompt.reshape(1, -1)
    with tempfile.TemporaryDirectory() as scratch:
        session = ort.open_bundle(folder, bundle, threads, graph, trace=Path(scratch))
        for _ in range(2):
            logits, cache = session.prefill(tokens, 1)
            session.step(logits[:, -1].argmax(axis=-1).reshape(1, 1), cache)
        events = read(session.end_trace())
    steps = steps_of(events, integer_operators(bundle))
    if len(steps) != 4:
        raise SlmqError(f"onnxruntime recorded {len(steps)} runs of the graph, not 4")
    found = [step._replace(graph=graph) for step in steps[2:]]
    return dict(zip(("prefill", "decode"), found))


def integer_operators(bundle: Mapping[str, Any]) -> Collection[str]:
    """Operators that multiply integers: by their nature, or because the bundle's rows say so."""
    lowering = bundle.get("lowering")
    rows = lowering.get("linears", ()) if isinstance(lowering, dict) else ()
    said = {row.get("operator") for row in rows if row.get("integer")}
    return set(INTEGER_GEMMS) | said - {
        row.get("operator") for row in rows if not row.get("integer")
    }


def read(file: Path) -> Sequence[Mapping[str, Any]]:
    """Events of a record.

    Raises:
        Damaged: it is not what onnxruntime writes.
    """
    try:
        events = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Damaged(f"onnxruntime's record {file} cannot be read: {error}") from error
    if not isinstance(events, list):
        raise Damaged(f"onnxruntime's record {file} is not a list of events")
    return events


def steps_of(
    events: Sequence[Mapping[str, Any]], integer: Collection[str] = INTEGER_GEMMS
) -> Sequence[Step]:
    """Sum the events of each run of the graph up by operator and provider, in order of time."""
    runs = sorted(
        (event["ts"], event["ts"] + event["dur"])
        for event in events
        if event.get("name") == "model_run"
    )
    kernels = [event for event in events if _is_kernel(event)]
    return [
        Step(_summed([one for one in kernels if start <= one["ts"] <= end], integer))
        for start, end in runs
    ]


def _is_kernel(event: Mapping[str, Any]) -> bool:
    name = str(event.get("name", ""))
    return event.get("cat") == "Node" and name.endswith(SUFFIX) and "op_name" in event["args"]


def _summed(events: Sequence[Mapping[str, Any]], integer: Collection[str]) -> Sequence[Operator]:
    found: dict[tuple[str, str], Operator] = {}
    for event in events:
        arguments = event["args"]
        name, provider = arguments["op_name"], arguments.get("provider", "")
        before = found.get((name, provider), Operator(name, provider, 0, 0.0, 0, name in integer))
        found[name, provider] = before._replace(
            calls=before.calls + 1,
            seconds=before.seconds + event["dur"] * MICROSECOND,
            macs=before.macs + macs_of(arguments, integer),
        )
    return sorted(found.values(), key=lambda one: -one.seconds)


def macs_of(arguments: Mapping[str, Any], integer: Collection[str] = INTEGER_GEMMS) -> int:
    """Multiply-adds by a weight of one operator's event, from its ``args``; 0 if it is no GEMM."""
    if arguments["op_name"] not in integer and arguments["op_name"] not in OTHER_GEMMS:
        return 0
    inputs, outputs = arguments["input_type_shape"], arguments["output_type_shape"]
    by_weight = len(inputs) < 2 or int(arguments.get("parameter_size", 0)) > 0
    if not by_weight or not inputs or not outputs:
        return 0
    ((_, first),) = inputs[0].items()
    ((_, out),) = outputs[0].items()
    count = int(first[-1])
    for size in out:
        count *= int(size)
    return count
