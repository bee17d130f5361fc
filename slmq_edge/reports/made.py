"""What was made, as a table: the manifest of a checkpoint or of a bundle -> text. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from slmq_edge.reports.format import bytes_text, scheme_text, seconds_text, share_text
from slmq_edge.scheme import Scheme
from slmq_edge.settings import EITHER, says


def checkpoint_table(manifest: Mapping[str, Any]) -> str:
    """Two columns, from ``checkpoint.json``."""
    scheme = Scheme.from_json(manifest["scheme"])
    rows = {
        "model": manifest["source"]["name"],
        "method": _method(manifest),
        "scheme": scheme.label,
        **{part: str(grid) for part, grid in grids(scheme, manifest["anatomy"]["tied"]).items()},
        "online": online_text(manifest),
        "calibration": calibration_text(manifest["calibration"]),
        "cost": cost_text(manifest["cost"]),
        "stages": stages_text(manifest["cost"]),
        "size": bytes_text(_size(manifest)),
    }
    return _table(rows, manifest["notes"])


def grids(scheme: Scheme, tied: bool) -> dict[str, object]:
    """What is rounded, and to which grid; the head is named also where it is not."""
    static = f" by {scheme.range}" if scheme.is_static else ""
    named = {
        "weights": scheme.weights,
        "protected": protected_text(scheme),
        "activations": scheme.activations and f"{scheme.activations}{static}",
        "lm_head": scheme.lm_head(tied) or "float",
        "embedding": scheme.table(tied),
        "keys, values": scheme.kv and scheme.kv.described(by_head=True),
        "queries": scheme.query and scheme.query.described(by_head=True),
        "o_proj's input": scheme.mixed,
    }
    return {part: grid for part, grid in named.items() if grid is not None}


def protected_text(scheme: Scheme) -> str | None:
    """The linears whose weights keep 8 bits, and their grid."""
    if not scheme.protects or isinstance(scheme.protected, int):
        return None
    return f"{names_text(scheme.protected)}: {scheme.protected_grid}"


def names_text(linears: Iterable[str]) -> str:
    """Full names of linears in short: ``3.mlp.down_proj``."""
    return ", ".join(linear.removeprefix("model.layers.") for linear in linears)


def bundle_table(manifest: Mapping[str, Any]) -> str:
    """Two columns, from ``bundle.json``."""
    lowering, verified = manifest["lowering"], manifest["verified"]
    share = share_text(lowering["int8_gemm_share"])
    bits = ", ".join(f"{k} {n}" for k, n in lowering["weight_storage_bits"].items())
    rows = {
        "model": manifest["model"]["name"],
        "method": _method(manifest),
        "scheme": f"{manifest['scheme_requested']} -> {ran_text(lowering)}",
        "integer GEMM": f"{share} of the weights' multiply-adds",
        "weights": lowering["weights"],
        "protected": names_text(lowering.get("protected", ())) or None,
        "activations": lowering["activation_mode"],
        "KV cache": lowering["kv_cache"],
        "bits on disk": bits,
        "changed": changes_text(lowering),
        "attention": lowering["attention"],
        "online": ", ".join(lowering["online_rotations"]) or None,
        "calibration": calibration_text(manifest["calibration"]),
        "cost": cost_text(manifest["cost"]),
        "stages": stages_text(manifest["cost"]),
        "golden check": verified_text(verified),
        "size": bytes_text(_size(manifest)),
    }
    return _table(rows, manifest.get("notes", ()))


def ran_text(lowering: Mapping[str, Any]) -> str:
    """The scheme that runs, as a bundle's report says it."""
    return scheme_text(str(lowering["scheme_ran"]), lowering["weight_storage_bits"])


def changes_text(lowering: Mapping[str, Any]) -> str | None:
    """What the target runs in place of what was asked, and its cost; ``None``: nothing else."""
    told = [
        f"{one['what']}: mean KL {one['mean_kl']:.1e}, perplexity "
        f"{100 * (one['perplexity_ratio'] - 1):+.2f} % ({one['tokens']} tokens of {one['text']})"
        for one in lowering.get("changes") or ()
    ]
    return "; ".join(told) or None


def verified_text(verified: Mapping[str, Any] | None) -> str:
    if verified is None:
        return (
            "not done here (no onnxruntime, or a CPU that multiplies int8 inexactly); the device "
            "does it before it times anything"
        )
    return (
        f"mean KL {verified['mean_kl']:.1e}, with a past {verified['mean_kl_with_past']:.1e} "
        f"({verifier_text(verified)})"
    )


def verifier_text(verified: Mapping[str, Any]) -> str:
    """What ran a bundle where it was made, and on what."""
    if "torch" in verified:
        return f"torch {verified['torch']}, {verified['device']}"
    provider = verified.get("provider", "CPUExecutionProvider")
    return f"onnxruntime {verified['onnxruntime']}, {provider}"


def online_text(manifest: Mapping[str, Any]) -> str | None:
    """Rotations left for run time, ``None`` where there are none."""
    names = {"keys": "queries and keys (R3)", "down": "down_proj's input (R4)"}
    online = manifest.get("online") or {}
    return ", ".join(text for name, text in names.items() if online.get(name)) or None


def _method(manifest: Mapping[str, Any]) -> str:
    said = dict(manifest["settings"])
    if all(says(said, name) for name in EITHER):
        del said[EITHER[0]]  # the other goes over it
    settings = ", ".join(f"{name} {value}" for name, value in said.items() if value is not None)
    return f"{manifest['method']} ({settings})" if settings else str(manifest["method"])


def calibration_text(calibration: Mapping[str, Any] | None) -> str:
    if calibration is None:
        return "none"
    text, windows = calibration["text"], calibration["windows"]
    return f"{text}, {windows} windows of {calibration['length']} tokens"


def cost_text(cost: Mapping[str, Any]) -> str:
    peaks = ", ".join(
        f"{kind.removesuffix('_bytes')} {bytes_text(count)}"
        for kind, count in cost["memory"].items()
    )
    joules = cost.get("energy_joules")
    of = cost.get("energy_of") or "all processors"
    energy = "" if joules is None else f", {joules:.0f} J ({of})"
    behind, parts = cost.get("resumed_behind_block"), cost.get("resumed_with") or ()
    what = " and ".join([*([f"{behind} blocks"] if behind else []), *parts])
    resumed = f" (without the {what} of a run that was interrupted)" if what else ""
    return f"{seconds_text(cost['seconds'])} on {cost['device']}{resumed}, {peaks}{energy}"


def stages_text(cost: Mapping[str, Any]) -> str | None:
    """Seconds by stage, the longest first; those that took no time to speak of are left out."""
    longest = sorted(cost.get("stages", {}).items(), key=lambda stage: -stage[1])
    told = [(name, took) for name, took in longest if took >= 0.005 * cost["seconds"]]
    return ", ".join(f"{name} {seconds_text(took)}" for name, took in told) or None


def _size(manifest: Mapping[str, Any]) -> int:
    return sum(int(entry["bytes"]) for entry in manifest["files"].values())


def _table(rows: Mapping[str, str | None], notes: Iterable[str]) -> str:
    """Rows that have a value, then a line for each note."""
    listed = [(name, value) for name, value in rows.items() if value is not None]
    listed += [("note", note) for note in notes]
    width = max(len(name) for name, _ in listed)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in listed)
