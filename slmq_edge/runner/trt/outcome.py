"""What came of a build, as a table. Pure."""

from __future__ import annotations

from typing import Any, Mapping

from slmq_edge.runner.trt.cache import Engine

SHOWN = 3  # products that are not int8, by name


def render(engine: Engine) -> str:
    """Two columns, from an engine's sidecar."""
    found = engine.sidecar
    identity = found["identity"]
    rows = {
        "engine": f"{engine.plan} ({found['plan_bytes'] / 1e6:.1f} MB)",
        "built": f"{found['seconds']:.1f} s by {found['builder']}, TensorRT "
        f"{identity['tensorrt']}, {identity['gpu']} (sm_{identity['sm']}), CUDA {identity['cuda']}",
        "peak memory": _bytes((found.get("memory") or {}).get("cpu_peak_rss")),
        "shapes": f"prompts in pieces of {identity['prompt']}, room for {identity['context']} "
        f"({', '.join(found['profiles'])})",
        "int8 products": _int8(found),
        "scheme": f"{found['scheme_ran']}, {100 * found['int8_gemm_share']:.1f} % of the "
        "multiply-adds in int8",
        "activations": _bytes(found["activation_bytes"]),
        "golden check": _golden(found),
        "warnings": str(len(found["warnings"])) if found["warnings"] else None,
    }
    shown = {name: value for name, value in rows.items() if value is not None}
    width = max(map(len, shown))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in shown.items())


def _int8(found: Mapping[str, Any]) -> str:
    int8, missing = found["int8"], found["int8_missing"]
    if not int8 and not missing:
        return "none asked for"
    text = f"{len(int8)} of {len(int8) + len(missing)}"
    if missing:
        reasons = found["int8_reasons"]
        some = "; ".join(f"{name} ({reasons[name]})" for name in missing[:SHOWN])
        more = f"; and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        text += f"; not seen as int8: {some}{more}"
    return text


def _golden(found: Mapping[str, Any]) -> str:
    report = found["golden"]
    if report is None:
        return "not done here (this Python has no tensorrt); profile does it before it times"
    return f"mean KL {report['mean_kl']:.1e}, with a past {report['mean_kl_with_past']:.1e}"


def _bytes(count: int | None) -> str | None:
    return None if count is None else f"{count / 1e6:.1f} MB"
