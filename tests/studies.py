"""Folders of results to report on: small ones, written by the same code that writes real ones."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slmq_edge import results
from slmq_edge.caveats import Caveat
from slmq_edge.results import Device, Run
from slmq_edge.runner.trt import cache
from slmq_edge.tracks.accuracy import results as evaluations
from slmq_edge.tracks.accuracy.gap import SCORED
from slmq_edge.tracks.accuracy.results import Evaluation, NextTokens, Window
from tests.test_compare import run, with_artifact, with_series
from tests.test_eval_results import evaluation, questions_task, text_task

BENCH = Device("workbench", "cpu", {})
ORIN = Device("jetson-orin", "jetson", {})
# Questions of a task, of which full precision answers three quarters.
ASKED = 400
# Decoding seconds of five repetitions, and the shares by which they scatter.
SCATTER = (1.0, 1.01, 0.99, 1.02, 0.98)


# Seconds and peak bytes of quantizing.
COSTS = {"smoothquant": (10.0, 500_000_000), "gptq": (20.0, 400_000_000)}


def digest(method: str, scheme: str = "") -> str:
    """Of the bundle's manifest, as a run and an evaluation of it have it."""
    return hashlib.sha256(bundle(method, scheme).encode()).hexdigest()


def bundle(method: str, scheme: str) -> str:
    """A manifest, as far as reports read it."""
    seconds, memory = COSTS.get(method, (1.0, 300_000_000))
    document = {
        "format": "slmq-edge-bundle",
        "version": 1,
        "model": {"name": "SmolLM-135M", "revision": None},
        "method": method,
        "settings": {},
        "scheme_requested": scheme,
        "runtime": {"kind": "ort"},
        "lowering": {
            "scheme_ran": scheme,
            "int8_gemm_share": 0.789,
            "weights": "int8 per channel, symmetric",
            "activation_mode": "per token, dynamic, symmetric",
            "kv_cache": "float32",
            "lm_head": "float",
            "weight_storage_bits": {"linears": 8},
        },
        "cost": {
            "seconds": seconds,
            "memory": {"cpu_peak_rss": memory},
            "device": "cpu",
            "device_name": "Example CPU",
            "threads": 2,
            "calibration_tokens": 1024,
        },
        "files": {},
    }
    return json.dumps(document)


def timed(
    method: str,
    scheme: str,
    seconds: float,
    device: Device = BENCH,
    scatter: Sequence[float] = SCATTER,
    **changes: Any,
) -> Run:
    """A run whose decoding takes so many seconds; of one method and scheme, one bundle."""
    base = run("fp32" if scheme == "fp32" else "w8a8", device=device)
    named = {
        "method": method,
        "scheme_ran": scheme,
        "scheme_requested": scheme,
        "bundle_sha256": digest(method, scheme),
        "weights_bytes": {"fp32": 538, "w8a8": 140, "w4a8": 90}[scheme] * 10**6,
    }
    found = with_artifact(base, **(named | changes))
    decode = tuple(seconds * share for share in scatter)
    prefill = tuple(0.5 * share for share in scatter)
    return with_series(found, decode_seconds=decode, prefill_seconds=prefill)


def twice(*runs: Run) -> list[Run]:
    """Each, and the same from another start of the machine, a hundredth slower."""

    def slower(found: Run) -> Run:
        decode = tuple(1.01 * seconds for seconds in found.series["decode_seconds"].values)
        return with_series(found, decode_seconds=decode)

    return [one for found in runs for one in (found, slower(found))]


def scored(method: str, scheme: str, wrong: int = 0, **identity: Any) -> Evaluation:
    """What a bundle answers: as full precision does, but for so many more wrong of each task."""
    right = [index % 4 != 0 for index in range(ASKED)]
    flipped = {index for index in range(ASKED) if right[index]}
    lost = set(sorted(flipped)[:wrong])
    answers = [one and index not in lost for index, one in enumerate(right)]
    tasks = [
        text_task(name, [-300.0 - wrong, -280.0])
        if "wikitext" in name
        else questions_task(name, answers)
        for name in SCORED.values()
    ]
    who = {
        "runtime": "ort",
        "method": method,
        "scheme": scheme,
        "bundle_sha256": digest(method, scheme),
        "device": "workbench",
    }
    return evaluation(*tasks, **(who | identity))


def save(folder: Path, *found: Run | Evaluation) -> Path:
    """Each in a file of its own; names say nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in found:
        path = folder / f"{len([*folder.iterdir()]):02}.json"
        if isinstance(one, Run):
            results.save(one, path)
        else:
            evaluations.save(one, path)
    return folder


def save_bundle(folder: Path, method: str, scheme: str) -> Path:
    """The manifest of a bundle, of which runs and evaluations here have the digest."""
    folder.mkdir(parents=True)
    (folder / "bundle.json").write_text(bundle(method, scheme))
    return folder


def save_engine(folder: Path) -> Path:
    """The sidecar of an engine that was built in 75 s."""
    identity = cache.Identity("ab" * 32, 128, 192, 1, "", "10.3.0", "12.6", "87", "Orin")
    key = cache.key(identity)
    document = {
        "format": cache.FORMAT,
        "version": cache.VERSION,
        "key": key,
        "identity": identity._asdict(),
        "scheme_ran": "w8a8",
        "memory": {"cpu_peak_rss": 640_000_000},
        "seconds": 75.0,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{key}.json"
    path.write_text(json.dumps(document))
    return path


def held_against(found: Evaluation, base: Evaluation, *windows: Window) -> Evaluation:
    """An evaluation that was made with --against."""
    told = NextTokens("wikitext2_windows", base.identity, "asked", windows)
    return dataclasses.replace(found, next_tokens=(told,))


def save_bench(folder: Path, error: str) -> Path:
    """A bench of three cells: one is done, one failed, one waits for a board."""
    cells = [
        {"id": "export-a", "kind": "export", "device": "local"},
        {"id": "profile-a", "kind": "profile", "device": "local"},
        {"id": "profile-b", "kind": "profile", "device": "orin"},
    ]
    folder.mkdir(parents=True, exist_ok=True)
    document = {"format": "slmq-edge-bench", "version": 1, "plan": "[models]\n", "cells": cells}
    (folder / "bench.json").write_text(json.dumps(document))
    for cell, state in (("export-a", "done"), ("profile-a", "failed")):
        (folder / "cells" / cell).mkdir(parents=True)
        status = {"state": state, "error": error if state == "failed" else None}
        (folder / "cells" / cell / "status.json").write_text(json.dumps(status))
    return folder


def full(folder: Path) -> Path:
    """Two devices; W8A8 keeps the quality and is twice as fast, W4A8 is faster and loses a lot."""
    runs = [
        timed(method, scheme, seconds * factor, device)
        for device, factor in ((BENCH, 1.0), (ORIN, 3.0))
        for method, scheme, seconds in (
            ("none", "fp32", 4.0),
            ("smoothquant", "w8a8", 2.0),
            ("gptq", "w4a8", 1.5),
        )
    ]
    answers = [
        scored("none", "fp32"),
        scored("smoothquant", "w8a8"),
        scored("gptq", "w4a8", wrong=120),
    ]
    save(folder / "some" / "where", *twice(*runs), *answers)
    save_bundle(folder / "made" / "w8a8", "smoothquant", "w8a8")
    save_bundle(folder / "made" / "w4a8", "gptq", "w4a8")
    return save_bench(folder, "out of memory")


def renamed(found: Run, name: str) -> Run:
    """The same of a model, device and caveat that are called so."""
    caveat = dataclasses.replace(CAVEAT, advice=name)
    artifact = dataclasses.replace(found.artifact, model=name, weights=name)
    device = dataclasses.replace(found.device, name=name)
    return dataclasses.replace(found, artifact=artifact, device=device, caveats=(caveat,))


CAVEAT = Caveat("few-repetitions", "", {})
