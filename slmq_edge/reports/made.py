"""What was made, as a table: the manifest of a checkpoint or of a bundle -> text. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slmq_edge.reports.format import bytes_text, seconds_text, share_text


def checkpoint_table(manifest: Mapping[str, Any]) -> str:
    """Two columns, from ``checkpoint.json``."""
    head = manifest["scheme"]["head"]
    rows = {
        "model": manifest["source"]["name"],
        "method": _method(manifest),
        "scheme": manifest["scheme"]["name"],
        "lm_head": "float" if head is None else f"int{head['bits']}",
        "calibration": _calibration(manifest["calibration"]),
        "cost": _cost(manifest["cost"]),
        "size": bytes_text(_size(manifest)),
    }
    return _table(rows)


def bundle_table(manifest: Mapping[str, Any]) -> str:
    """Two columns, from ``bundle.json``."""
    lowering, verified = manifest["lowering"], manifest["verified"]
    share = share_text(lowering["int8_gemm_share"])
    bits = ", ".join(f"{k} {n}" for k, n in lowering["weight_storage_bits"].items())
    rows = {
        "model": manifest["model"]["name"],
        "method": _method(manifest),
        "scheme": f"{manifest['scheme_requested']} -> {lowering['scheme_ran']}",
        "integer GEMM": f"{share} of the weights' multiply-adds",
        "activations": lowering["activation_mode"],
        "bits on disk": bits,
        "attention": lowering["attention"],
        "calibration": _calibration(manifest["calibration"]),
        "cost": _cost(manifest["cost"]),
        "golden check": _verified(verified),
        "size": bytes_text(_size(manifest)),
    }
    return _table(rows)


def _verified(verified: Mapping[str, Any] | None) -> str:
    if verified is None:
        return "not done here (no onnxruntime); the device does it before it times anything"
    return (
        f"mean KL {verified['mean_kl']:.1e}, with a past {verified['mean_kl_with_past']:.1e} "
        f"(onnxruntime {verified['onnxruntime']})"
    )


def _method(manifest: Mapping[str, Any]) -> str:
    settings = ", ".join(
        f"{name} {value}" for name, value in manifest["settings"].items() if value is not None
    )
    return f"{manifest['method']} ({settings})" if settings else str(manifest["method"])


def _calibration(calibration: Mapping[str, Any] | None) -> str:
    if calibration is None:
        return "none"
    text, windows = calibration["text"], calibration["windows"]
    return f"{text}, {windows} windows of {calibration['length']} tokens"


def _cost(cost: Mapping[str, Any]) -> str:
    peaks = ", ".join(
        f"{kind.removesuffix('_bytes')} {bytes_text(count)}"
        for kind, count in cost["memory"].items()
    )
    return f"{seconds_text(cost['seconds'])} on {cost['device']}, {peaks}"


def _size(manifest: Mapping[str, Any]) -> int:
    return sum(int(entry["bytes"]) for entry in manifest["files"].values())


def _table(rows: Mapping[str, str]) -> str:
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())
