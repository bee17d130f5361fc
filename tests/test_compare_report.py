"""Comparisons as text, compared with the text they must be."""

from __future__ import annotations

import dataclasses
import json

import pytest

from slmq_edge.caveats import Caveat
from slmq_edge.compare import Comparison, compare
from slmq_edge.reports.compare import WIDTH, WRITERS, markdown, render, terminal, title, to_json
from slmq_edge.results import Device
from tests.test_compare import artifact, run, with_artifact, with_series

FEW = Caveat("few-repetitions", "3 repetitions say little", {"repetitions": 3})


def usual() -> Comparison:
    """One machine; noise in the candidate's decoding; an anonymous kind on one side only."""
    noisy = with_series(run("w8a8", caveats=(FEW,)), decode_seconds=(1.9, 2.0, 2.15))
    memory = {
        "prefill": {"cpu_peak_rss": 400_000_000},
        "decode": {"cpu_peak_rss": 300_000_000},
    }
    quantized = dataclasses.replace(noisy, memory=memory)
    return compare(run(caveats=(FEW,)), with_artifact(quantized, scheme_requested="w4a8"))


def papers() -> Comparison:
    return compare(run(), run("w8a8"), "paper")


def across() -> Comparison:
    return compare(run(), run("w8a8", device=Device("Jetson Orin Nano", "jetson", {})))


TERMINAL = """\
SmolLM-135M smoothquant w8a8 against SmolLM-135M none fp32: measured tokens/s and bytes

! the baseline stores float32: against float16 its bytes would be about half

what ran      baseline                 candidate
method        none                     smoothquant
scheme        fp32                     w4a8 -> w8a8
work in INT8  0.0 %                    78.9 %
bits stored   linears 32, lm_head 32,  linears 8, lm_head 32, embedding
              embedding 32             32
weights       float32                  int8 per channel, symmetric
activations   float32                  per token, dynamic, symmetric
bundle        aaaaaaaaaaaa             bbbbbbbbbbbb

both: model SmolLM-135M; KV cache float32; lm_head float; runtime ort 1.23.0; device workbench
      (cpu); numbers are measured; golden check passed, mean KL 1.5e-06; prompt 128 tokens; new
      tokens 64; batch 1

quantity                        baseline   candidate  times better          95 %       verdict
size on disk                      540 MB      225 MB          2.40                      better
weights                           538 MB      220 MB          2.45                      better
weights, of float16's *           269 MB      220 MB      1.22 [1]                      better
load                              500 ms      500 ms          1.00                 no interval
prefill, 128 tokens           64.0 tok/s   128 tok/s          2.00  2.00 to 2.00  inconclusive
time to first token               2.00 s      1.00 s          2.00  2.00 to 2.00  inconclusive
decode, 64 tokens *           16.0 tok/s  32.0 tok/s          2.00  1.86 to 2.11  inconclusive
prefill: cpu_peak_rss             800 MB      400 MB          2.00                 no interval
prefill: cpu_rss_anon             200 MB         n/a       n/a [2]
decode: cpu_peak_rss              700 MB      300 MB          2.33                 no interval
decode: cpu_rss_anon              200 MB         n/a       n/a [2]
peak memory (cpu_peak_rss) *      800 MB      400 MB          2.00                 no interval

SLMQ_infer 177.9 (95 %: 172.8 to 181.9) against the baseline's own 86.6: inconclusive
* enters SLMQ_infer: 100 times the root mean square of the three ratios; its memory is the
largest cpu_peak_rss over prefill and decode.
95 %: of 10,000 draws with replacement of each run's repetitions, and of runs where there are
several. Repetitions of one run know nothing of what another start of the machine or the
process would give. inconclusive: the interval holds 1, there are fewer than 5 readings, or a
run says that its repetitions drifted.

[1] held against the candidate's model in float16, 2 bytes a parameter
[2] the candidate does not have it, and unlike kinds are never compared

! baseline and candidate: 3 repetitions say little
"""

TERMINAL_PAPER = """\
SmolLM-135M smoothquant w8a8 against SmolLM-135M none fp32: the paper's convention (parameters
as size, MACs as speed): not a measurement of speed

! the baseline stores float32: against float16 its bytes would be about half

what ran      baseline                 candidate
method        none                     smoothquant
scheme        fp32                     w8a8
work in INT8  0.0 %                    78.9 %
bits stored   linears 32, lm_head 32,  linears 8, lm_head 32, embedding
              embedding 32             32
weights       float32                  int8 per channel, symmetric
activations   float32                  per token, dynamic, symmetric
bundle        aaaaaaaaaaaa             bbbbbbbbbbbb

both: model SmolLM-135M; KV cache float32; lm_head float; runtime ort 1.23.0; device workbench
      (cpu); numbers are measured; golden check passed, mean KL 1.5e-06; prompt 128 tokens; new
      tokens 64; batch 1

quantity                        baseline  candidate  times better  95 %      verdict
parameters, as size *              135 M      135 M          1.00               same
MACs of 128 tokens, as speed *    17.2 G     3.62 G          4.75             better
peak memory (cpu_peak_rss) *      800 MB     800 MB          1.00        no interval

SLMQ_infer (the paper's convention) 286.1 against the baseline's own 100.0
* enters SLMQ_infer: 100 times the root mean square of the three ratios; its memory is the
largest cpu_peak_rss over prefill and decode.
"""

MARKDOWN = r"""
### SmolLM-135M smoothquant w8a8 against SmolLM-135M none fp32: measured tokens/s and bytes

- **the baseline stores float32: against float16 its bytes would be about half**

| what ran | baseline | candidate |
|---|---|---|
| method | none | smoothquant |
| scheme | fp32 | w4a8 -> w8a8 |
| work in INT8 | 0.0 % | 78.9 % |
| bits stored | linears 32, lm\_head 32, embedding 32 | linears 8, lm\_head 32, embedding 32 |
| weights | float32 | int8 per channel, symmetric |
| activations | float32 | per token, dynamic, symmetric |
| bundle | aaaaaaaaaaaa | bbbbbbbbbbbb |

Both: model SmolLM-135M; KV cache float32; lm\_head float; runtime ort 1.23.0; device workbench
(cpu); numbers are measured; golden check passed, mean KL 1.5e-06; prompt 128 tokens; new
tokens 64; batch 1.

| quantity | baseline | candidate | times better | 95 % | verdict |
|---|---:|---:|---:|---:|---:|
| size on disk | 540 MB | 225 MB | 2.40 |  | better |
| weights | 538 MB | 220 MB | 2.45 |  | better |
| weights, of float16's \* | 269 MB | 220 MB | 1.22 [1] |  | better |
| load | 500 ms | 500 ms | 1.00 |  | no interval |
| prefill, 128 tokens | 64.0 tok/s | 128 tok/s | 2.00 | 2.00 to 2.00 | inconclusive |
| time to first token | 2.00 s | 1.00 s | 2.00 | 2.00 to 2.00 | inconclusive |
| decode, 64 tokens \* | 16.0 tok/s | 32.0 tok/s | 2.00 | 1.86 to 2.11 | inconclusive |
| prefill: cpu\_peak\_rss | 800 MB | 400 MB | 2.00 |  | no interval |
| prefill: cpu\_rss\_anon | 200 MB | n/a | n/a [2] |  |  |
| decode: cpu\_peak\_rss | 700 MB | 300 MB | 2.33 |  | no interval |
| decode: cpu\_rss\_anon | 200 MB | n/a | n/a [2] |  |  |
| peak memory (cpu\_peak\_rss) \* | 800 MB | 400 MB | 2.00 |  | no interval |

**SLMQ\_infer 177.9 (95 %: 172.8 to 181.9) against the baseline's own 86.6: inconclusive**

\* enters SLMQ\_infer: 100 times the root mean square of the three ratios; its memory is the
largest cpu\_peak\_rss over prefill and decode.
95 %: of 10,000 draws with replacement of each run's repetitions, and of runs where there are
several. Repetitions of one run know nothing of what another start of the machine or the
process would give. inconclusive: the interval holds 1, there are fewer than 5 readings, or a
run says that its repetitions drifted.

1. held against the candidate's model in float16, 2 bytes a parameter
2. the candidate does not have it, and unlike kinds are never compared

- baseline and candidate: 3 repetitions say little
"""


def test_terminal_is_exactly_this() -> None:
    assert terminal(usual()) == TERMINAL


def test_terminal_under_the_papers_convention_is_exactly_this() -> None:
    assert terminal(papers()) == TERMINAL_PAPER


def test_markdown_is_exactly_this() -> None:
    assert "\n" + markdown(usual()) == MARKDOWN


@pytest.mark.parametrize("format", WRITERS)
def test_every_format_labels_the_papers_convention(format: str) -> None:
    label = "the paper's convention (parameters as size, MACs as speed): not a measurement of"
    flat = " ".join(render([papers()], format).split())
    assert label in flat
    assert label not in " ".join(render([usual()], format).split())


@pytest.mark.parametrize("format", WRITERS)
def test_every_format_carries_doubts_and_refusals(format: str) -> None:
    text = render([usual()], format)
    assert FEW.advice in text
    assert "unlike kinds are never compared" in text
    assert "the baseline stores float32" in text


@pytest.mark.parametrize("format", WRITERS)
def test_every_format_names_both_devices(format: str) -> None:
    label = "workbench (cpu) against Jetson Orin Nano (jetson)"
    text = render([across()], format)
    assert text.count(label) >= 2
    assert label not in render([usual()], format)


def test_ratios_across_devices_carry_a_footnote() -> None:
    lines = terminal(across()).splitlines()
    decode = next(line for line in lines if line.startswith("decode, 64 tokens"))
    size = next(line for line in lines if line.startswith("size on disk"))
    assert "  2.00 [2]  2.00 to 2.00" in decode
    assert size.split()[-2:] == ["2.40", "better"]
    assert "[2] across devices: workbench (cpu) against Jetson Orin Nano (jetson)" in lines


def test_terminal_keeps_to_its_width() -> None:
    long = with_artifact(run("w8a8"), model="organisation/" + "a-rather-long-model-name" * 3)
    for comparison in (usual(), papers(), across(), compare(run(), long)):
        assert max(map(len, terminal(comparison).splitlines())) <= WIDTH


def test_markdown_escapes_what_would_break_a_table() -> None:
    odd = with_artifact(run("w8a8"), model="a|b*c")
    text = markdown(compare(run(), odd))
    assert "a\\|b\\*c" in text
    assert "a|b" not in text


def test_json_keeps_full_precision_and_says_what_it_is() -> None:
    comparison = usual()
    document = to_json(comparison)
    assert json.loads(render([comparison], "json")) == json.loads(json.dumps(document))
    assert (document["format"], document["version"]) == ("slmq-edge-comparison", 2)
    assert document["slmq_infer"]["value"] == comparison.score.value
    rows = {row["key"]: row for row in document["rows"]}
    assert rows["decode_rate"]["ratio"] == comparison.row("decode_rate").ratio
    assert rows["bundle_bytes"]["candidate"] == {
        "median": 225_000_000,
        "spread": None,
        "between": None,
    }
    assert document["baseline"]["artifact"]["scheme_ran"] == "fp32"
    assert document["candidate"]["runs"][0]["caveats"][0]["code"] == "few-repetitions"


def test_several_comparisons_are_several_blocks() -> None:
    assert render([usual(), papers()], "terminal") == TERMINAL + "\n" + TERMINAL_PAPER
    assert len(render([usual(), papers()], "json").splitlines()) == 2


def test_a_published_figure_is_labelled() -> None:
    published = run("w8a8", origin="published", golden={})
    text = terminal(compare(run(), published))
    assert "! the candidate is published, not measured" in text
    assert "published" in next(x for x in text.splitlines() if x.startswith("numbers are"))
    assert "not checked" in next(x for x in text.splitlines() if x.startswith("golden check"))


def test_bundles_that_differ_in_grids_have_other_names() -> None:
    kv = "rounded to int8 by token and head, stored as float32"
    found = compare(run("w8a8"), run("w8a8", artifact=artifact("w8a8", kv_cache=kv)))
    assert f"w8a8 (KV cache {kv}) against" in title(found)
    assert "w8a8 (KV cache float32): measured" in title(found)
    old = artifact("w8a8", kv_cache=None, weights=None)
    assert "n/a" not in terminal(compare(run("w8a8", artifact=old), run("w8a8", artifact=old)))
