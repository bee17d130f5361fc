"""Bounds: no bundle reads less than its card says, and only what is impossible is condemned."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmq_edge import bounds
from slmq_edge.assembly import artifact_of
from slmq_edge.bounds import Ceiling, card, card_of, ceilings, implausible, lowest
from slmq_edge.errors import Damaged
from slmq_edge.export import export
from slmq_edge.exporters import onnx
from slmq_edge.quantize import Request, plan, quantize
from slmq_edge.reports import bounds as report
from slmq_edge.results import Device, Run
from slmq_edge.runner.measure import Workload
from slmq_edge.scheme import scheme
from tests.decoders import random_llama, random_qwen2, rounded
from tests.test_compare import run as example
from tests.test_compare import with_artifact, with_series

WORK = Workload(100, 21, 1, 0, 1)  # mean depth 110


def facts(**values: Any) -> dict[str, Any]:
    """As run.json has them."""
    names = {
        "bandwidth": bounds.BANDWIDTH,
        "int8": bounds.INT8,
        "fp16": bounds.FP16,
        "cache": bounds.CACHE,
    }
    return {names[key]: {"value": value, "source": "test"} for key, value in values.items()}


def document(name: str, head: str = "int8", tied: bool = True) -> dict[str, Any]:
    """What bundle.json says of a graph, without writing one."""
    model = random_qwen2() if tied else random_llama()
    checkpoint = rounded(model, scheme(name, head))
    _, lowering = onnx.write(checkpoint)
    shape = checkpoint.anatomy
    return {
        "anatomy": shape.as_json(),
        "runtime": {"kind": "ort"},
        "lowering": lowering.as_json(),
        "files": {"ort/model.onnx": {"bytes": 7}, "ort/model.onnx.data": {"bytes": 5000}},
        "counts": {
            "parameters": shape.parameters,
            "linear_macs_per_token": shape.linear_macs_per_token,
            "head_macs_per_token": shape.head_macs_per_token,
        },
        "weight_bytes": {"steps": 100},
    }


@pytest.mark.parametrize(
    ("name", "bits"),
    [("fp32", 32), ("w8a8", 8), ("w4a8", 8), ("w4a8-b32", 4), ("w4a16-g32", 4), ("w8a16", 32)],
)
def test_weights_are_read_as_they_lie_in_memory(name: str, bits: int) -> None:
    found = document(name, "float" if name == "fp32" else "int8")
    head = 32 if name in ("fp32", "w4a16-g32", "w8a16") else 8
    of_head = found["lowering"]["linears"][-1]
    assert of_head["part"] == "head"
    head = of_head["memory_bits"]
    counts = found["counts"]
    weights = counts["linear_macs_per_token"] * bits + counts["head_macs_per_token"] * head
    asked = card(found, WORK)
    assert asked.read_bytes == weights // 8 + 100
    assert asked.weights_bytes == 5007
    assert asked.macs_per_token == sum(list(counts.values())[1:])


def test_a_tied_table_counts_once_and_a_lookup_table_not_at_all() -> None:
    tied, apart = document("w8a8", "float"), document("w8a8", "float", tied=False)
    assert (tied["anatomy"]["tied"], apart["anatomy"]["tied"]) == (True, False)
    assert card(tied, WORK).table_bytes == 0
    shape = apart["anatomy"]
    assert card(apart, WORK).table_bytes == shape["vocab"] * shape["hidden"] * 4
    linears = apart["counts"]["linear_macs_per_token"]
    head = apart["counts"]["head_macs_per_token"]
    assert card(apart, WORK).read_bytes == linears + 4 * head + 100


def test_keys_and_values_count_at_the_mean_depth() -> None:
    found = document("fp32", "float")
    shape = found["anatomy"]
    asked = card(found, WORK)
    per_token = 2 * shape["layers"] * shape["kv_heads"] * shape["head_dim"] * 4
    assert asked.kv_bytes_per_token == per_token
    assert asked.depth == sum(range(100, 121)) / 21
    assert asked.bytes_per_token == asked.read_bytes + per_token * 110


def test_rotations_are_work_but_hardly_bytes() -> None:
    found = document("w8a8")
    plain = card(found, WORK)
    row = {**found["lowering"]["linears"][0], "part": "rotation", "macs_per_token": 10**9}
    found["lowering"]["linears"] = [row, *found["lowering"]["linears"]]
    assert card(found, WORK) == plain


def test_a_manifest_without_counts_is_refused_by_name() -> None:
    found = document("w8a8")
    del found["lowering"]["weight_storage_bits"]
    with pytest.raises(Damaged, match="weight_storage_bits"):
        card(found, WORK)


@pytest.mark.parametrize("name", ["fp32", "w8a8", "w4a8", "w4a16-g32", "w8a16"])
def test_an_older_bundle_without_rows_has_a_card_by_its_counts(name: str) -> None:
    found = document(name, "float" if name == "fp32" else "int8")
    before = card(found, WORK)
    del found["lowering"]["linears"]
    after = card(found, WORK)
    assert after.read_bytes == before.read_bytes - before.steps_bytes
    assert after.macs_per_token == pytest.approx(before.macs_per_token)


def as_run(found: dict[str, Any], **changes: Any) -> Run:
    named = {"model": "m", "method": "none", "scheme_requested": "x", "context_length": 512}
    artifact = artifact_of({**named, **found}, "0" * 64, card(found, WORK).kv_bytes_per_token)
    workload = dataclasses.replace(example().workload, prompt_tokens=100, new_tokens=21)
    return dataclasses.replace(example(), artifact=artifact, workload=workload, **changes)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", ["float", "int8"])
@pytest.mark.parametrize("name", ["fp32", "w8a8", "w4a8", "w4a8-b32", "w4a16-g32", "w8a16"])
def test_a_run_tells_the_same_card_without_steps(name: str, head: str, tied: bool) -> None:
    found = document(name, "float" if name == "fp32" else head, tied)
    before, after = card(found, WORK), card_of(as_run(found))
    assert after.read_bytes == before.read_bytes - before.steps_bytes
    assert after.kv_bytes == before.kv_bytes
    assert after.linears.integer == pytest.approx(before.linears.integer)
    assert (after.head, after.depth) == (before.head, before.depth)


def test_a_real_bundle_has_a_card_whose_bytes_are_on_disk(tmp_path: Path) -> None:
    export(quantize(plan("demo-llama", Request(scheme("w8a8", "int8"), "none"))), tmp_path / "b")
    found = json.loads((tmp_path / "b" / "bundle.json").read_text())
    asked = card(found, WORK)
    parts = found["weight_bytes"]
    on_disk = parts["linears"] + parts["embedding"] + parts["lm_head"] + parts["steps"]
    assert asked.read_bytes == on_disk
    assert asked.weights_bytes >= on_disk


A800 = facts(bandwidth=2e12, int8=6e14, fp16=3e14)


def test_decoding_is_bounded_by_bytes_and_by_operations() -> None:
    asked = card(document("w8a8", "float"), WORK)
    gpu = dataclasses.replace(asked, on_gpu=True)
    memory, arithmetic = ceilings(gpu, A800, "cuda").decode
    assert memory.per_second == 2e12 / asked.bytes_per_token
    seconds = 2 * asked.linears.integer / 6e14 + 2 * asked.head.floats / 3e14
    assert arithmetic.per_second == pytest.approx(1 / seconds)
    memory, arithmetic = ceilings(gpu, A800, "cuda").prefill
    assert memory.per_second == pytest.approx(100 * 2e12 / asked.read_bytes)
    seconds = 100 * 2 * asked.linears.integer / 6e14 + 2 * asked.head.floats / 3e14
    assert arithmetic.per_second == pytest.approx(100 / seconds)


def test_what_a_cache_may_hold_does_not_come_from_memory() -> None:
    asked = card(document("w8a8"), WORK)
    whole = asked.bytes_per_token
    half = ceilings(asked, A800, "cpu", whole / 2).decode[0]
    assert half.per_second == pytest.approx(2 * 2e12 / whole)
    held = ceilings(asked, A800, "cpu", whole).decode[0]
    assert held.per_second is None
    assert "cache" in str(held.reason)


@pytest.mark.parametrize(
    ("kind", "on_gpu", "known", "reason"),
    [
        ("cpu", False, {}, "no bandwidth_bytes_per_second"),
        ("cuda", True, {"bandwidth": 1e12}, "no int8_dense_ops"),
        ("jetson", False, {"int8": 1e12, "fp16": 1e12}, "peaks are the GPU's"),
        ("cuda", False, {"bandwidth": 1e12}, "a GPU's"),
    ],
)
def test_a_missing_fact_is_a_reason(
    kind: str, on_gpu: bool, known: dict[str, float], reason: str
) -> None:
    asked = dataclasses.replace(card(document("w8a8"), WORK), on_gpu=on_gpu)
    found = ceilings(asked, facts(**known), kind)
    reasons = [one.reason or "" for one in found.decode]
    assert any(reason in one for one in reasons)
    none = ceilings(asked, {}, kind)
    assert lowest(none.decode) is None
    assert "n/a: " in dict(report.allowed(none))["speed at most"]


def test_one_bound_binds() -> None:
    known = [Ceiling("a", None, "?"), Ceiling("b", 3.0), Ceiling("c", 2.0)]
    assert lowest(known) == known[2]


# SmolLM-135M in w8a8 with a head in float32: 106 MB and 113 MB, and KV at depth 159.5.
READ = 106_168_320 + 4 * 49_152 * 576


def measured(decode: float, bandwidth: float, cache: float | None = 0.001, **more: Any) -> Run:
    """64 tokens at so many tokens/s on a CPU."""
    told = {} if cache is None else {"cache_bytes": cache}
    base = example("w8a8", environment={**example().environment, **told})
    base = with_series(base, decode_seconds=(64 / decode,) * 3)
    device = Device("board", "cpu", facts(bandwidth=bandwidth, **more))
    return dataclasses.replace(base, device=device)


def test_above_the_bandwidth_is_implausible_and_clocks_have_five_percent() -> None:
    whole = READ + 159.5 * 46_080
    assert implausible(measured(100, 100 * whole)) == ()
    assert implausible(measured(104.9, 100 * whole)) == ()
    (said,) = implausible(measured(105.1, 100 * whole))
    assert said == "decode: 105.1 tokens/s is 1.05 times what memory bandwidth allows (100)"


def test_a_cache_may_explain_it_and_an_unknown_one_does_below_512_mb() -> None:
    whole = READ + 159.5 * 46_080
    assert implausible(measured(1e5, whole, cache=whole)) == ()
    assert implausible(measured(199, 100 * whole, cache=whole / 2)) == ()
    assert implausible(measured(220, 100 * whole, cache=whole / 2)) != ()
    assert implausible(measured(1e5, whole, cache=None)) == ()
    big = with_artifact(
        measured(100, 20e9, cache=None),
        scheme_ran="fp32",
        int8_gemm_share=0.0,
        weight_storage_bits={"linears": 32, "lm_head": 32, "embedding": 32},
    )
    beyond = 4 * 134_479_872 + 159.5 * 46_080 - 512e6
    assert implausible(big) == ()  # 538 MB: 33 MB are beyond any cache
    faster = with_series(big, decode_seconds=(64 / (1.1 * 20e9 / beyond),) * 3)
    assert len(implausible(faster)) == 1


def test_the_cpus_cache_does_not_excuse_a_gpu() -> None:
    whole = READ + 159.5 * 46_080
    base = measured(1e5, 100 * whole, cache=1e12)
    gpu = dataclasses.replace(
        with_artifact(base, runtime={"kind": "trt"}),
        device=Device("gpu", "cuda", facts(bandwidth=100 * whole, cache=4e6)),
    )
    assert len(implausible(gpu)) == 1
    on_its_cpu = dataclasses.replace(base, device=Device("b", "jetson", gpu.device.facts))
    assert implausible(on_its_cpu) == ()


def test_an_uncertain_fact_condemns_nothing_and_a_projection_is_no_claim() -> None:
    run = measured(1e5, 1e9)
    assert implausible(run) != ()
    doubtful = {bounds.BANDWIDTH: {"value": 1e9, "source": "?", "uncertain": True}}
    assert implausible(dataclasses.replace(run, device=Device("b", "cpu", doubtful))) == ()
    assert implausible(dataclasses.replace(run, origin="projected")) == ()


def test_prefill_above_the_peak_is_implausible() -> None:
    gpu = with_artifact(measured(1, 1e15), runtime={"kind": "trt"})
    peaks = Device("gpu", "cuda", facts(int8=6e14, fp16=3e14))
    work = 128 * 2 * 106_168_320 / 6e14 + 2 * 49_152 * 576 / 3e14
    for factor, count in ((1.0, 0), (1.1, 1)):
        run = with_series(gpu, prefill_seconds=(work / factor,) * 3)
        run = with_artifact(run, int8_gemm_share=106_168_320 / (106_168_320 + 49_152 * 576))
        assert len(implausible(dataclasses.replace(run, device=peaks))) == count


def test_a_peak_below_the_weights_is_implausible_unless_pages_may_have_gone() -> None:
    def of(total: int | None, peak: int | None) -> tuple[str, ...]:
        base = example("w8a8", memory={"decode": {"cpu_peak_rss": peak}})
        environment = {**base.environment, "memory_total_bytes": total}
        return implausible(dataclasses.replace(base, environment=environment))

    assert of(8 * 10**9, READ) == ()
    (said,) = of(8 * 10**9, READ // 2)
    assert "109.7 MB resident is less than the 219.4 MB of weights" in said
    assert of(READ, READ // 2) == ()  # mapped weights come and go
    assert of(None, READ // 2) == ()
    assert of(8 * 10**9, None) == ()


@given(
    rate=st.floats(1e-3, 1e9),
    bandwidth=st.floats(1e6, 1e13),
    cache=st.none() | st.floats(1, 1e12),
)
def test_a_rate_is_condemned_exactly_where_bytes_beyond_the_cache_say_so(
    rate: float, bandwidth: float, cache: float | None
) -> None:
    beyond = READ + 159.5 * 46_080 - (bounds.UNKNOWN_CACHE if cache is None else cache)
    allowed = bandwidth / beyond if beyond > 0 else float("inf")
    found = implausible(measured(rate, bandwidth, cache))
    if abs(rate / allowed - bounds.TOLERANCE) > 1e-9:
        condemned = any(one.startswith("decode") for one in found)
        assert condemned == (rate > bounds.TOLERANCE * allowed)


def test_rows_of_the_report() -> None:
    run = measured(50, 100 * (READ + 159.5 * 46_080))
    asked = card_of(run)
    limits = ceilings(asked, run.device.facts, "cpu")
    rows = dict(report.asked(asked) + report.allowed(limits))
    assert rows["read per token"] == "227 MB (weights 219 MB, KV 7.35 MB at depth 160)"
    assert rows["work per token"] == "134 M multiply-adds"
    assert rows["decode at most"] == "100 tok/s by memory bandwidth"
    after = dict(report.reached(asked, limits, run.device.facts, {"decode": 50, "prefill": 64}))
    assert after["memory bandwidth used"] == "50.0 % (MBU of decode)"
    assert after["decode of the most"] == "50.0 % (100 tok/s by memory bandwidth)"
    assert report.reached(asked, ceilings(asked, {}, "cpu"), {}, {"decode": 1, "prefill": 1}) == []
