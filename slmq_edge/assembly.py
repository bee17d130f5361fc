"""Journal -> Run: the events of one or several processes, put together and doubted."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from slmq_edge import bounds, record
from slmq_edge.caveats import AT, IMPLAUSIBLE, Caveat, Evidence, doubts
from slmq_edge.energy import Window
from slmq_edge.errors import Damaged
from slmq_edge.results import (
    Artifact,
    Device,
    Run,
    Series,
    Workload,
    decode,
    from_document,
    to_json,
)
from slmq_edge.runner import forward, resume
from slmq_edge.runner.manifest import described, graph_of


def assemble(
    events: Sequence[Mapping[str, Any]],
    device: Device,
    bundle: Mapping[str, Any],
    wanted: int | None = None,
) -> Run:
    """Make a `Run` of a journal's events; see `runner.journal` for what they hold.

    Args:
        events: of one or, after an interruption, several processes, in order.
        device: where they ran.
        bundle: bundle.json.
        wanted: how many repetitions, where that is not what the last process was asked for.

    Raises:
        Damaged: an event is missing, or bundle.json lacks a field.
    """
    begins = _all(events, "begin")
    loads = _all(events, "load")
    golden = _all(events, "golden")[-1]["report"]
    probe = _all(events, "probe")[-1]["result"]
    warmups = [event for event in events if event["event"] == "warmup"]
    ends = [event for event in events if event["event"] == "end"]  # none if killed just before
    workload: Workload = decode(Workload, begins[-1]["workload"], "journal: workload")
    workload = dataclasses.replace(workload, repetitions=wanted or workload.repetitions)
    _all(events, "repetition")
    counted = sorted(resume.repetitions(events).items())
    repetitions = [event for index, event in counted if index < workload.repetitions]
    environment = {
        **begins[0]["environment"],
        "load_average_end": ends[-1]["load_average"] if ends else None,
        "profile": (ends[-1] if ends else {}).get("profile") or loads[-1]["profile"],
        "board": begins[-1].get("board"),
    }
    said = [event["session"] for event in [*loads, *ends] if event.get("session")]
    environment |= {"session": said[-1]} if said else {}
    placed = [event["steps"] for event in events if event["event"] == "placed"]
    environment |= {"placed": placed[-1]} if placed else {}
    passes = [event for _, event in sorted(forward.taken(events).items())]
    environment |= {forward.LOGITS: passes[-1]["logits"]} if passes else {}
    artifact = dataclasses.replace(
        artifact_of(bundle, begins[-1]["bundle_sha256"], loads[-1]["kv_bytes_per_token"]),
        read_bytes=bounds.card(bundle, workload).read_bytes,
    )
    series = _series(loads, warmups, repetitions) | _put_aside(events) | _forward(events, passes)
    rounds = [*warmups, *repetitions, *passes]
    created = datetime.datetime.fromtimestamp(begins[0]["at"], datetime.UTC)
    found = Run(
        created=created.isoformat(timespec="seconds"),
        artifact=as_built(artifact, said[-1] if said else {}),
        device=device,
        environment=environment,
        workload=workload,
        golden=golden,
        probe=probe,
        series=series,
        memory=_memory(loads, rounds),
        origin="measured",
        caveats=(),
        device_memory=_device_memory([*loads, *rounds]),
        power=_power(events),
        states=_states(events, [*loads, *rounds]),
    )
    evidence = Evidence(
        series, environment, dataclasses.asdict(workload), golden, probe, found.states, found.power
    )
    complete = dataclasses.replace(found, caveats=(*_impossible(found), *doubts(evidence)))
    return from_document(json.loads(to_json(complete)), "the journal")


def _impossible(run: Run) -> tuple[Caveat, ...]:
    """One caveat for all that is beyond what the device can do; none where nothing is."""
    found = bounds.implausible(run)
    if not found:
        return ()
    advice = f"IMPLAUSIBLE: {'; '.join(found)}: do not use these figures, and tell us of them"
    return (Caveat(IMPLAUSIBLE, advice, {"found": list(found)}),)


def _all(events: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    found = [event for event in events if event["event"] == name]
    if not found:
        raise Damaged(f"the journal has no event '{name}'")
    return found


def artifact_of(bundle: Mapping[str, Any], sha256: str, kv_bytes_per_token: int) -> Artifact:
    """Take what ran from bundle.json, at its top or in its section ``lowering``.

    Raises:
        Damaged: a field is missing or of the wrong type.
    """
    files = decode(Mapping[str, Mapping[str, Any]], bundle.get("files"), "bundle.json: files")
    sizes = [decode(int, files[name].get("bytes"), f"bundle.json: {name}") for name in files]
    known = described(bundle) | {
        "model": _model_name(bundle.get("model")),
        # The graph's external data has the graph's name and more.
        "weights_bytes": sum(
            size
            for name, size in zip(files, sizes, strict=True)
            if name.startswith(graph_of(bundle))
        ),
        "bundle_sha256": sha256,
        "bundle_bytes": sum(sizes),
        "kv_bytes_per_token": kv_bytes_per_token,
        "recipe": record.of_bundle(bundle),
    }
    names = [field.name for field in dataclasses.fields(Artifact)]
    artifact: Artifact = decode(
        Artifact, {name: known[name] for name in names if name in known}, "bundle.json:"
    )
    return artifact


def as_built(artifact: Artifact, said: Mapping[str, Any]) -> Artifact:
    """What ran where an engine was built of a bundle: what did not become int8 costs the label."""
    if not said.get("int8_missing"):
        return artifact
    return dataclasses.replace(
        artifact, scheme_ran=said["scheme_ran"], int8_gemm_share=said["int8_gemm_share"]
    )


def _model_name(model: Any) -> Any:
    """Return the name in ``{"name", "revision", ...}``; `decode` judges any other shape."""
    if not isinstance(model, dict):
        return model
    revision = model.get("revision")
    return f"{model.get('name')}@{revision}" if revision else model.get("name")


def _series(
    loads: Iterable[Mapping[str, Any]],
    warmups: Sequence[Mapping[str, Any]],
    repetitions: Sequence[Mapping[str, Any]],
) -> dict[str, Series]:
    def seconds(values: Iterable[float]) -> Series:
        return Series("s", tuple(float(value) for value in values))

    steps = [step for event in repetitions for step in event["decode_step_seconds"]]
    return {
        "load_seconds": seconds(event["seconds"] for event in loads),
        "prefill_seconds": seconds(event["prefill_seconds"] for event in repetitions),
        "decode_seconds": seconds(event["decode_seconds"] for event in repetitions),
        "decode_step_seconds": seconds(steps),
        "warmup_prefill_seconds": seconds(event["prefill_seconds"] for event in warmups),
        "warmup_decode_seconds": seconds(event["decode_seconds"] for event in warmups),
    }


def _forward(
    events: Sequence[Mapping[str, Any]], passes: Sequence[Mapping[str, Any]]
) -> dict[str, Series]:
    """The passes of a protocol, and what they were warmed up by; empty without one."""
    before = [event for event in events if event["event"] == forward.WARMUP]
    named = {"forward_seconds": passes, "warmup_forward_seconds": before}
    return {
        name: Series("s", tuple(float(event["seconds"]) for event in found))
        for name, found in named.items()
        if passes
    }


def _states(
    events: Sequence[Mapping[str, Any]], counted: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], ...]:
    """What the machine was like at the events that count, in the order of time."""
    which = {id(event) for event in counted}
    return tuple(
        {**event["state"], AT: event["event"]}
        for event in events
        if id(event) in which and event.get("state")
    )


def _put_aside(events: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """Repetitions that were not steady and were taken again: kept, and counted nowhere."""
    marks = [index for index, event in enumerate(events) if event["event"] == "again"]
    if not marks:
        return {}
    before = [event for event in events[: marks[-1]] if event["event"] == "repetition"]
    return {
        f"unsteady_{name}": Series("s", tuple(float(event[name]) for event in before))
        for name in ("prefill_seconds", "decode_seconds")
    }


def _power(events: Sequence[Mapping[str, Any]]) -> dict[str, Window] | None:
    """Windows by phase, the last of each; None where there is none."""
    names = [field.name for field in dataclasses.fields(Window)]
    found = {
        event["phase"]: decode(Window, {name: event[name] for name in names}, "journal: power")
        for event in events
        if event["event"] == "power"
    }
    return found or None


def _memory(
    loads: Sequence[Mapping[str, Any]], rounds: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, int | None]]:
    """Return the largest value of every kind in every phase, over all rounds and processes.

    A kind that one of them could not read is None: a maximum over a part would be a guess.
    """
    found: dict[str, dict[str, list[Any]]] = {}
    for event in [*loads, *rounds]:
        for phase, kinds in event["memory"].items():
            if not isinstance(kinds, dict):
                raise Damaged(f"the journal is damaged: memory of {phase}")
            for kind, value in kinds.items():
                found.setdefault(phase, {}).setdefault(kind, []).append(value)
    return {
        phase: {kind: None if None in v else max(v) for kind, v in kinds.items()}
        for phase, kinds in found.items()
    }


def _device_memory(events: Sequence[Mapping[str, Any]]) -> dict[str, int] | None:
    """The largest value of every part, over all rounds and processes; None where none was told."""
    found: dict[str, int] = {}
    for event in events:
        for name, count in event.get("device_memory", {}).items():
            found[name] = max(count, found.get(name, 0))
    return found or None
