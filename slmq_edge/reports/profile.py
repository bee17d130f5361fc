"""One run as text: what ran, how fast, how much memory, and how far to trust it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from slmq_edge import bounds, energy
from slmq_edge.caveats import worked
from slmq_edge.reports import bounds as bound_rows
from slmq_edge.reports.format import (
    bytes_text,
    count_text,
    rate_text,
    scheme_text,
    seconds_text,
    section,
    share_text,
    watts_text,
)
from slmq_edge.results import Run, Series
from slmq_edge.runner.environment import computes_on_gpu
from slmq_edge.runner.forward import LOGITS

MEMORY_NAMES = {
    "cpu_peak_rss": "peak RSS",
    "cpu_rss_anon": "anonymous",
    "cpu_rss_file": "mapped files",
    "gpu_process_used": "on the GPU now",
    "torch_peak_allocated": "torch's peak",
    "torch_peak_reserved": "torch's peak with what it keeps",
}
DEVICE_NAMES = {
    "engine": "engine (weights, kernels)",
    "kv": "keys and values, twice",
    "io": "inputs and outputs",
    "rest": "rest (TensorRT's own, others')",
}
OF_TORCH = {"kv": "keys and values", "rest": "rest (activations, what torch keeps)"}


def render(run: Run) -> str:
    """Run -> text of several short tables, ending in a newline."""
    parts = [
        section(f"{run.artifact.model} on {run.device.name}", _card(run)),
        section("Speed (median [width of the middle half])", _speed(run)),
        section("Against what the device allows", _bounds(run)),
        section("Memory of the process, by phase", _memory(run)),
        *_on_device(run),
        *_energy(run),
        *_machine(run),
        section("Checked on this device", _checks(run)),
    ]
    if run.caveats:
        parts.append("Caveats\n" + "\n".join(f"  ! {caveat.advice}" for caveat in run.caveats))
    return "\n\n".join(parts) + "\n"


def _card(run: Run) -> list[tuple[str, str]]:
    ran = run.artifact
    asked = "" if ran.scheme_requested == ran.scheme_ran else f" (asked: {ran.scheme_requested})"
    stored = ", ".join(f"{part} {b} bits" for part, b in ran.weight_storage_bits.items())
    cache = "" if ran.kv_cache is None else f", {ran.kv_cache}"
    rows = [
        ("method", ran.method),
        *_runtime(run),
        ("ran", f"{scheme_text(ran.scheme_ran, ran.weight_storage_bits)}{asked}"),
        ("work in INT8", share_text(ran.int8_gemm_share)),
        *([] if ran.weights is None else [("weight grid", ran.weights)]),
        ("activations", ran.activation_mode),
        ("lm_head", ran.lm_head),
        ("parameters", count_text(ran.counts.parameters)),
        ("weights", f"{bytes_text(ran.weights_bytes)} ({stored})"),
        ("bundle on disk", bytes_text(ran.bundle_bytes)),
        ("KV cache", f"{bytes_text(ran.kv_bytes_per_token)} per token{cache}"),
    ]
    return rows


def _runtime(run: Run) -> list[tuple[str, str]]:
    """Of torch, which computes on a GPU or on a CPU: on which, and by whose operators."""
    said = run.environment.get("session") or {}
    if not run.environment.get("torch"):
        return []
    where = "on a GPU" if run.environment.get("gpu") else "on a CPU"
    operators = said.get("operators", "unknown")
    return [("runtime", f"torch {run.environment['torch']} {where}, operators: {operators}")]


def _bounds(run: Run) -> list[tuple[str, str]]:
    """What a token costs, and the share of what the device allows that was reached."""
    card, facts, kind = bounds.card_of(run), run.device.facts, run.device.kind
    limits = bounds.ceilings(card, facts, kind, bounds.cache_of(card, facts, kind, run.environment))
    rates = {"decode": run.decode_rate.median, "prefill": run.prefill_rate.median}
    return [*bound_rows.asked(card), *bound_rows.reached(card, limits, facts, rates)]


def _speed(run: Run) -> list[tuple[str, str]]:
    work, series = run.workload, run.series
    first = series["prefill_seconds"]
    wait = seconds_text(first.median) + _around(first, seconds_text(first.spread))
    return [
        (f"prefill, {work.prompt_tokens} tokens", _rate(run.prefill_rate)),
        (
            "time to first token",
            wait,
        ),
        (f"decode, {work.new_tokens} tokens", _rate(run.decode_rate)),
        *_forward(run),
        ("load", f"{seconds_text(series['load_seconds'].median)} (files cached)"),
        ("repetitions", f"{len(first.values)} after {work.warmups} warm-ups"),
        *([] if work.text is None else [("text", f"{work.text.source} ({work.text.sha256[:12]})")]),
        *([] if computes_on_gpu(run.environment) else [("threads", _threads(run))]),
    ]


def _forward(run: Run) -> list[tuple[str, str]]:
    """The paper's figure, and what it is of."""
    rate = run.forward_rate
    if rate is None:
        return []
    work, logits = run.workload, run.environment.get(LOGITS)
    warmed = run.series["warmup_forward_seconds"]
    passes = f"{len(rate.values)} passes after {len(warmed.values)}"
    return [
        (f"forward pass, {work.prompt_tokens} tokens", _rate(rate)),
        ("", f"protocol {work.protocol}: {passes}, logits of {logits} positions"),
    ]


def _threads(run: Run) -> str:
    return f"{run.workload.threads} on {run.environment.get('cores')} cores"


def _rate(series: Series) -> str:
    return rate_text(series.median) + _around(series, rate_text(series.spread))


def _around(series: Series, spread: str) -> str:
    """The spread in brackets; a single value has none."""
    return f" [{spread}]" if len(series.values) > 1 else ""


def _memory(run: Run) -> list[tuple[str, str]]:
    rows = []
    for phase, kinds in run.memory.items():
        texts = [f"{MEMORY_NAMES.get(k, k)} {bytes_text(v)}" for k, v in kinds.items()]
        rows.append((phase, ", ".join(texts) or "not measured"))
    return rows or [("", "not measured")]


def _on_device(run: Run) -> list[str]:
    """A section of what lies on a device of its own, where there is one."""
    if run.device_memory is None:
        return []
    names = {**DEVICE_NAMES, **(OF_TORCH if run.environment.get("torch") else {})}
    rows = [(names.get(part, part), bytes_text(n)) for part, n in run.device_memory.items()]
    total = bytes_text(sum(run.device_memory.values()))
    return [section("Memory on the device, at most", [*rows, ("all of it", total)])]


def _energy(run: Run) -> list[str]:
    """A section of joules where windows were taken, with the reason where they tell none."""
    if run.power is None:
        reasons = (run.environment.get("profile") or {}).get("reasons", {})
        reason = reasons.get("power") or reasons.get("energy")
        return [] if reason is None else [section("Energy", [("", f"not told: {reason}")])]
    found = {phase: energy.of(run.power, phase) for phase in energy.WORK}
    sources = {one.source for one in found.values() if isinstance(one, energy.Energy)}
    rest = next((one.idle_watts for one in found.values() if isinstance(one, energy.Energy)), None)
    idle = "" if rest is None else f"; idle {watts_text(rest)}"
    whole = (run.environment.get("profile") or {}).get("energy_of", "the whole device")
    title = f"Energy of {whole} ({', '.join(sources) or 'not told'}{idle})"
    return [section(title, [(phase, _energy_text(one)) for phase, one in found.items()])]


def _energy_text(found: energy.Energy | str) -> str:
    if isinstance(found, str):
        return f"not told: {found}"
    above = found.tokens_per_joule_above_idle
    more = "" if above is None else f"; above idle {rate_text(above, 'tok/J')}"
    window = f"{found.samples} readings in {seconds_text(found.seconds)}"
    text = f"{watts_text(found.watts)}, {rate_text(found.tokens_per_joule, 'tok/J')}{more}"
    return f"{text} ({window})"


def _machine(run: Run) -> list[str]:
    """A section of mode, clocks and heat, of what the machine tells."""
    rows = []
    if mode := run.environment.get("power_mode"):
        rows.append(("power mode", str(mode)))
    clocks = _told(filter(worked, run.states), "clocks_hz")
    for domain, values in clocks.items():
        rows.append((f"clock, {domain}", f"{statistics.median(values) / 1e6:.0f} MHz"))
    heat = _told(run.states, "temperatures_celsius")
    if heat:
        zone = max(heat, key=lambda name: max(heat[name]))
        first, most = heat[zone][0], max(heat[zone])
        rows.append(("warmest", f"{zone}: {first:.0f} at first, {most:.0f} degrees C at most"))
    return [section("Machine", rows)] if rows else []


def _told(states: Iterable[Mapping[str, Any]], field: str) -> dict[str, list[float]]:
    """Name -> the values that were told, in order; without names of which none was."""
    found: dict[str, list[float]] = {}
    for state in states:
        for name, value in (state.get(field) or {}).items():
            if value is not None:
                found.setdefault(name, []).append(value)
    return found


def _checks(run: Run) -> list[tuple[str, str]]:
    golden = run.golden
    perplexity = f"{golden['perplexity']:.4f} (simulated {golden['reference_perplexity']:.4f})"
    rows = [
        ("mean KL", f"{golden['mean_kl']:.1e}, with a past {golden['mean_kl_with_past']:.1e}"),
        ("perplexity", f"{perplexity} on {golden['positions_compared']} golden positions"),
        ("greedy tokens", f"{golden['greedy_compared']} compared, all equal"),
    ]
    if run.probe is not None:
        exact = "exact" if run.probe["exact"] else f"off by up to {run.probe['largest_error']}"
        rows.append(("integers", f"{exact} ({run.probe['operator']})"))
    for phase, found in (run.environment.get("placed") or {}).items():
        rows.append((f"{phase} on the GPU", _placed(found)))
    said = run.environment.get("session") or {}
    if "int8_asked" in said:
        left = said["int8_asked"] - len(said["int8_missing"])
        rows.append(("int8 products", f"{left} of {said['int8_asked']} in engine {said['engine']}"))
    if said.get("cuda_graph"):
        rows.append(("CUDA graph", str(said["cuda_graph"])))
    return rows


def _placed(found: Mapping[str, Any]) -> str:
    """Of one run of a graph, by onnxruntime's record: what was there, and what was not."""
    macs = found["macs"]
    work = "" if macs is None else f"{share_text(macs)} of the multiply-adds, "
    left = ", ".join(f"{name} {calls}" for name, calls in sorted(found["elsewhere"].items()))
    return (
        f"{work}{share_text(found['seconds'])} of the host's time in operators; on the CPU: "
        f"{left or 'none'}"
    )
