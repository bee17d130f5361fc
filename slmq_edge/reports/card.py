"""MODEL_CARD.md: what a bundle is, for whoever finds the folder. The manifest -> text. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slmq_edge.reports.format import share_text
from slmq_edge.reports.made import changes_text, ran_text, verifier_text
from slmq_edge.runner.manifest import TORCH, TRT

FILE = "MODEL_CARD.md"
NAMES = {TRT: "TensorRT", TORCH: "torch"}


def card(manifest: Mapping[str, Any], texts: tuple[str, ...] = ()) -> str:
    """Markdown, from ``bundle.json``; ``texts`` are the names of licence texts in the bundle."""
    name, lowering = manifest["model"]["name"], manifest["lowering"]
    sections = {
        "Made from": [
            _model(manifest["model"]),
            f"Licence: {license_text(manifest['model'], texts)}.",
        ],
        "How": _how(manifest),
        "Runs on": _runs(manifest),
        "Checked": _checked(manifest),
        "Make it again": _again(manifest),
    }
    lines = [f"# {name}, {ran_text(lowering)} by {manifest['method']}", ""]
    for title, said in sections.items():
        lines += [f"## {title}", "", *said, ""]
    return "\n".join([*lines, f"Written by {manifest['created_by']}."]) + "\n"


def license_text(model: Mapping[str, Any], texts: tuple[str, ...]) -> str:
    """The licence as the source names it, or that it does not; and the texts that came with it."""
    said = model.get("license") or "unknown, the source names none"
    if "license" not in model:
        said = "unknown, an older version did not record it"
    return f"{said} ({', '.join(texts)})" if texts else str(said)


def _model(model: Mapping[str, Any]) -> str:
    revision = model.get("revision")
    at = f" at revision {revision}" if revision else ""
    origins = {"hub": "from the Hugging Face hub", "built-in": "built into slmq-edge"}
    return f"`{model['name']}`{at}, {origins.get(str(model.get('origin')), 'a local folder')}."


def _how(manifest: Mapping[str, Any]) -> list[str]:
    lowering, calibration = manifest["lowering"], manifest["calibration"]
    preset = (manifest.get("recipe") or {}).get("preset")
    method = f"{manifest['method']}, preset {preset}" if preset else manifest["method"]
    lines = [
        f"- Method: {method}. Scheme: {manifest['scheme_requested']} asked, "
        f"{ran_text(lowering)} executed.",
        f"- Weights: {lowering['weights']}. Activations: {lowering['activation_mode']}. "
        f"lm_head: {lowering['lm_head']}. KV cache: {lowering['kv_cache']}.",
        f"- Multiply-adds by weights between integers: {share_text(lowering['int8_gemm_share'])}.",
    ]
    changed = changes_text(lowering)
    lines += [] if changed is None else [f"- Not as the scheme asks: {changed}."]
    if calibration is None:
        return [*lines, "- Calibration: none."]
    return [
        *lines,
        f"- Calibrated on {calibration['text']} (sha256 {calibration['sha256']}), "
        f"{calibration['windows']} windows of {calibration['length']} tokens.",
    ]


def _runs(manifest: Mapping[str, Any]) -> list[str]:
    runtime = manifest["runtime"]
    is_engine = runtime["kind"] == TRT
    first = "`slmq-edge build` makes its engine on the machine that runs it. " if is_engine else ""
    return [
        f"{runtime_name(runtime)} {runtime['minimum_version']} or later (`{runtime['kind']}`), "
        f"contexts of up to {manifest['context_length']} tokens. {first}`slmq-edge inspect` says "
        "what is inside, `slmq-edge profile` checks and times it."
    ]


def runtime_name(runtime: Mapping[str, Any]) -> str:
    """What runs a bundle, by its maker's name."""
    return NAMES.get(str(runtime["kind"]), "ONNX Runtime")


def _checked(manifest: Mapping[str, Any]) -> list[str]:
    limits, verified = manifest["golden"], manifest["verified"]
    bounds = (
        f"Golden prompts travel with it. The artifact may differ from its simulation by a mean KL "
        f"of {limits['kl_limit']:.1e} nats and {share_text(limits['perplexity_limit'])} of "
        "perplexity."
    )
    if verified is None:
        return [
            bounds,
            "Not checked where it was made: no onnxruntime was there, or a CPU that multiplies "
            "int8 inexactly.",
        ]
    return [
        bounds,
        f"With {verifier_text(verified)}: mean KL "
        f"{verified['mean_kl']:.1e}, with a past {verified['mean_kl_with_past']:.1e}; perplexity "
        f"of its golden prompts {verified['perplexity']:.4f}, simulated "
        f"{verified['reference_perplexity']:.4f}.",
    ]


def _again(manifest: Mapping[str, Any]) -> list[str]:
    recipe, runtime = manifest.get("recipe"), manifest["runtime"]
    if recipe is None:
        return ["No words of the command line describe it: it was made by a program."]
    options = f" --target {runtime['kind']}"
    if "profile" in runtime:
        options += f" --runtime {runtime['profile']}"
    if "activation_mode" in runtime:
        options += f" --activation-mode {runtime['activation_mode']}"
    lines = ["```", f"slmq-edge export --config recipe.toml{options} -o bundle/", "```"]
    file = recipe.get("calibration", {}).get("file")
    absent = [] if file is None else [f"its calibration text `{file}`"]
    if manifest["model"].get("origin") == "local":
        absent.insert(0, f"the model's folder `{recipe.get('model', manifest['model']['name'])}`")
    if absent:
        lines += ["", f"Needed, and not in here: {' and '.join(absent)}."]
    return lines
