"""Track 2 as the paper times it, and prompts of real text: from the command to run.json."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from slmq_edge import calibration, results
from slmq_edge.builtin import world
from slmq_edge.caveats import Evidence, doubts
from slmq_edge.commands import profile as command
from slmq_edge.compare import compare
from slmq_edge.errors import Damaged, NotFound, SlmqError, UsageError
from slmq_edge.profiles.fake import Fake, FakeClock
from slmq_edge.prompts import bundle_tokenizer
from slmq_edge.remote.run import Remote, run_id
from slmq_edge.reports.profile import render
from slmq_edge.runner import forward, job, journal, measure, resume
from slmq_edge.runner.forward import Together
from slmq_edge.runner.golden import golden_file
from slmq_edge.runner.greedy import Greedy
from slmq_edge.runner.manifest import read_bundle
from slmq_edge.runner.measure import Text, Workload
from slmq_edge.tracks import inference
from slmq_edge.tracks.reading import reading
from tests import test_generate, toy_graph
from tests.remote_client import OPTIONS, local
from tests.shared import shared
from tests.test_compare import run
from tests.test_inference import Listener, _leave_journal
from tests.test_results import GOLDEN, WORKLOAD

TEXT = Text("a text", "ab" * 32, tuple(range(20)) * 6 + tuple(range(8)))
PLAIN = Workload(128, 4, repetitions=2, warmups=1, threads=1)
PAPER = PLAIN._replace(protocol="paper", text=TEXT)
APP = typer.Typer()
APP.command()(command.profile)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_graph.write_bundle(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real bundle, which has a tokenizer."""
    return test_generate.made(tmp_path_factory.mktemp("demo") / "bundle", {})


# --- what is taken


def test_a_run_has_the_papers_passes_beside_its_own(bundle: Path, tmp_path: Path) -> None:
    told = Listener()
    found = inference.profile(bundle, PAPER, tmp_path / "run.json", told, OPTIONS)
    assert results.load(tmp_path / "run.json") == found
    assert [told.count(name) for name in ("repetition", "forward_warmup", "forward")] == [
        2,
        10,
        100,
    ]
    order = [event["event"] for event in told.events]
    assert order.index("forward_warmup") > order.index("repetition")
    assert len(found.series["forward_seconds"].values) == 100
    assert len(found.series["warmup_forward_seconds"].values) == 10
    assert found.environment["forward_logits"] == 128
    assert (found.workload.protocol, found.workload.text) == (
        "paper",
        results.Text("a text", "ab" * 32),
    )
    assert found.forward_rate is not None
    seconds = found.series["forward_seconds"].values
    assert found.forward_rate.values == tuple(128 / second for second in seconds)
    assert found.memory["forward"]["cpu_peak_rss"]
    shown = render(found)
    assert "forward pass, 128 tokens" in shown
    assert "protocol paper: 100 passes after 10, logits of 128 positions" in shown
    assert "a text (abababababab)" in shown


def test_without_a_protocol_nothing_is_said_of_one(bundle: Path, tmp_path: Path) -> None:
    found = inference.profile(bundle, PLAIN, tmp_path / "run.json", Listener(), OPTIONS)
    assert found.forward_rate is None
    assert {"forward_seconds", "warmup_forward_seconds"}.isdisjoint(found.series)
    assert "forward" not in found.memory
    assert "forward" not in render(found)


class Recorder(Greedy):
    """A session that remembers what it was asked, each pass a second longer."""

    appends = False

    def __init__(self, clock: FakeClock) -> None:
        self.clock, self.asked = clock, list[tuple[Any, int | None]]()

    def prefill(
        self, tokens: Any, keep: int | None = None, room: int = 0, piece: int | None = None
    ) -> tuple[Any, Any]:
        self.asked.append((tokens, keep))
        self.clock.advance(len(self.asked))
        return np.zeros((1, keep or tokens.shape[1], 3), np.float32), None

    def step(self, tokens: Any, cache: Any) -> tuple[Any, Any]:
        raise AssertionError("a forward pass decodes nothing")


@pytest.mark.parametrize(("together", "keep"), [(None, None), (Together(512, 64), 64)])
def test_a_pass_is_one_prompt_with_all_logits_that_fit(
    together: Together | None, keep: int | None
) -> None:
    clock, events = FakeClock(), list[dict[str, Any]]()
    session, prompt = Recorder(clock), np.arange(128)
    forward.take(session, prompt, "paper", events.append, Fake(), (7, 9), together, clock)
    assert [event["event"] for event in events] == ["forward_warmup"] * 10 + ["forward"] * 2
    assert [event["index"] for event in events[10:]] == [7, 9]
    assert [event["seconds"] for event in events] == [float(n) for n in range(1, 13)]
    assert {event["logits"] for event in events} == {keep or 128}
    assert all(tokens.shape == (1, 128) and kept == keep for tokens, kept in session.asked)
    assert [event["index"] for event in events if "state" in event] == [9, 9]
    for event in events:
        assert journal.parse_event(json.dumps(event).encode()) == event


def test_an_engine_that_would_read_in_pieces_is_refused() -> None:
    forward.check("paper", Together(128, 64))
    forward.check(None, Together(1, 1))
    with pytest.raises(UsageError, match=r"engine takes 64 at once; .* --prompt 128"):
        forward.check("paper", Together(64, 64))


# --- interruptions


def test_passes_go_on_where_they_were_cut(bundle: Path, tmp_path: Path) -> None:
    output, log = tmp_path / "run.json", tmp_path / "run.journal.jsonl"

    def kill(event: Mapping[str, Any]) -> None:
        if event["event"] == "begin":
            pids.append(event["pid"])
        if event["event"] == "forward" and event["index"] == 20:
            os.kill(pids[-1], signal.SIGKILL)

    pids: list[int] = []
    with pytest.raises(SlmqError, match="repetitions and forward passes are kept"):
        inference.profile(bundle, PAPER, output, kill, OPTIONS)
    kept = forward.taken(journal.read(log))
    assert 21 <= len(kept) < 100
    told = Listener()
    found = inference.profile(bundle, PAPER, output, told, OPTIONS)
    assert f"resuming: {len(kept) + 2} of 102 repetitions and forward passes" in told.notes()
    assert told.count("repetition") == 0
    assert told.count("forward") == 100 - len(kept)
    values = found.series["forward_seconds"].values
    assert values[: len(kept)] == tuple(event["seconds"] for _, event in sorted(kept.items()))
    assert len(values) == 100


def test_a_journal_of_older_releases_goes_on(bundle: Path, tmp_path: Path) -> None:
    """Their ``begin`` knows of no protocol; nor does that of a plain run today."""
    log = _leave_journal(bundle, tmp_path / "run.json", PLAIN)
    begin = journal.read(log)[0]
    assert begin["workload"] == {name: getattr(PLAIN, name) for name in Workload._fields[:5]}
    told = Listener()
    inference.profile(bundle, PLAIN, tmp_path / "run.json", told)
    assert [event["event"] for event in told.events] == ["note"]


@pytest.mark.parametrize(
    "other",
    [PLAIN, PAPER._replace(text=TEXT._replace(sha256="cd" * 32)), PLAIN._replace(text=TEXT)],
)
def test_a_journal_of_another_text_or_protocol_is_put_aside(
    other: Workload, bundle: Path, tmp_path: Path
) -> None:
    log = _leave_journal(bundle, tmp_path / "run.json", PLAIN._replace(text=TEXT))
    events = journal.read(log)
    events[0]["workload"] = PAPER.asked()
    digest: str = events[0]["bundle_sha256"]
    here: dict[str, Any] = {}
    assert resume.other(events, digest, PAPER.asked(), False, here) is None
    reason = resume.other(events, digest, other.asked(), False, here)
    assert reason == "the interrupted run had another workload"


def test_an_older_run_is_read(bundle: Path, tmp_path: Path) -> None:
    found = inference.profile(bundle, PLAIN, tmp_path / "run.json", Listener(), OPTIONS)
    document = json.loads((tmp_path / "run.json").read_text())
    del document["workload"]["protocol"], document["workload"]["text"]
    assert results.from_document(document, "older") == found


# --- on a board


def test_a_plain_job_is_written_as_it_was(bundle: Path, tmp_path: Path) -> None:
    """A board knows its runs by it, those too that an older release began."""
    plain = job.Job(bundle, tmp_path / "x", PLAIN, "cpu", False).document()
    assert set(plain) == set(job.Job._fields) - {"torch_device"}
    assert set(plain["workload"]) == set(Workload._fields[:5])


def test_the_tokens_travel_in_the_job_and_name_it(bundle: Path, tmp_path: Path) -> None:
    def named(work: Workload) -> str:
        return run_id(job.Job(bundle, tmp_path / "x", work, "cpu", False))

    swapped = TEXT._replace(tokens=TEXT.tokens[::-1])
    works = [PLAIN, PLAIN._replace(text=TEXT), PAPER, PAPER._replace(text=swapped)]
    assert len({named(work) for work in works}) == 4
    path = tmp_path / "job.json"
    for work in works:
        path.write_text(json.dumps(job.Job(bundle, tmp_path / "x", work, "cpu", False).document()))
        assert job.read(path).workload == work


def test_a_board_times_it_too(bundle: Path, tmp_path: Path) -> None:
    told = Listener()
    with Remote(local(tmp_path / "device")) as machine:
        found = inference.profile(
            bundle, PAPER, tmp_path / "run.json", told, OPTIONS, machine=machine
        )
    assert told.count("forward") == 100
    assert len(found.series["forward_seconds"].values) == 100
    assert found.workload.text == results.Text(TEXT.source, TEXT.sha256)


def test_the_prompt_is_the_text_on_the_device_too(bundle: Path, tmp_path: Path) -> None:
    """A token that the model does not have can only have come from the job."""
    far = TEXT._replace(tokens=(toy_graph.VOCAB + 5, *TEXT.tokens[1:]))
    work = PLAIN._replace(text=far)
    with Remote(local(tmp_path / "device")) as machine, pytest.raises(RuntimeError, match="Gather"):
        inference.profile(bundle, work, tmp_path / "run.json", Listener(), OPTIONS, machine=machine)


def test_a_job_whose_text_is_not_the_prompt_is_refused(bundle: Path) -> None:
    golden = golden_file(bundle, read_bundle(bundle))
    assert list(measure.prompt_of(PAPER, golden)) == list(TEXT.tokens)
    with pytest.raises(Damaged, match="128 tokens of text, and reads 64"):
        measure.prompt_of(PAPER._replace(prompt_tokens=64), golden)


# --- what is asked


def _call(*arguments: object) -> Any:
    return CliRunner().invoke(APP, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--protocol", "papr"), "did you mean paper"),
        (("--protocol", "paper", "-p", 64), "prompts of 128 tokens: leave -p 64 out"),
    ],
)
def test_a_protocol_that_cannot_be_followed_is_refused(
    options: tuple[object, ...], says: str, bundle: Path, tmp_path: Path
) -> None:
    done = _call(bundle, "-o", tmp_path / "run.json", *options)
    assert isinstance(done.exception, UsageError)
    assert says in str(done.exception)


def test_the_command_reads_the_file(demo: Path, tmp_path: Path) -> None:
    file = tmp_path / "some.txt"
    file.write_text("\n".join(world.calibration_text()[:40]))
    done = _call(
        *(demo, "-o", tmp_path / "run.json", "--protocol", "paper", "--text", file),
        *("-n", 4, "-r", 2, "--power-seconds", 0, "--threads", 1, "--once", "--json"),
    )
    assert done.exception is None
    found = results.from_document(json.loads(done.stdout), "stdout")
    digest = calibration.read_text(file).sha256
    assert found.workload.text == results.Text("some.txt", digest)
    assert found.workload.repetitions == 2
    assert len(found.series["forward_seconds"].values) == 100


def test_a_prompt_is_the_beginning_of_its_text(demo: Path, tmp_path: Path) -> None:
    document, tokenizer = read_bundle(demo), bundle_tokenizer(demo, read_bundle(demo))
    one = " ".join(world.calibration_text()[:200])
    (tmp_path / "one.txt").write_text(one)
    found = reading(demo, document, 128, tmp_path / "one.txt")
    assert list(found.tokens) == tokenizer(one, verbose=False)["input_ids"][:128]
    several = world.calibration_text()[:50]
    rows = "".join(json.dumps({"text": text}) + "\n" for text in several)
    (tmp_path / "several.jsonl").write_text(rows)
    joined = [token for text in several for token in tokenizer(text)["input_ids"]]
    tokens = reading(demo, document, 300, tmp_path / "several.jsonl").tokens
    assert list(tokens) == joined[:300]


def test_wikitext_is_read_by_any_tokenizer(demo: Path) -> None:
    file = shared("data/wikitext2/wiki.test.raw")
    found = reading(demo, read_bundle(demo), 512, file)
    tokenizer = bundle_tokenizer(demo, read_bundle(demo))
    head = file.read_text(encoding="utf-8")[:200_000]
    assert list(found.tokens) == tokenizer(head, verbose=False)["input_ids"][:512]
    assert found.source == "wiki.test.raw"


def test_a_text_that_is_too_short_or_missing_is_refused(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("The ant is small.")
    with pytest.raises(SlmqError, match=r"'short.txt' has \d tokens, and 128 are to be read"):
        reading(demo, read_bundle(demo), 128, tmp_path / "short.txt")
    with pytest.raises(NotFound, match=r"no text at .*shor.txt .did you mean short.txt"):
        reading(demo, read_bundle(demo), 128, tmp_path / "shor.txt")
    with pytest.raises(NotFound, match="--text takes a text"):
        reading(demo, read_bundle(demo), 128, tmp_path)


def test_without_a_file_it_is_the_usual_text_or_none(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = {**read_bundle(demo), "model": {"name": "demo-llama", "origin": "built-in"}}
    assert reading(demo, document, 128, None).source == calibration.BUILTIN_WORLD

    def offline() -> list[str]:
        raise NotFound("cannot fetch WikiText-2 from the hub: no network.")

    monkeypatch.setattr(calibration, "_wikitext2", offline)
    from_hub = {**document, "model": {"name": "x/y", "origin": "hub", "revision": None}}
    with pytest.raises(NotFound, match=r"no network\. Give the text to read with --text FILE"):
        reading(demo, from_hub, 128, None)


def test_a_bundle_without_a_tokenizer_reads_no_text(bundle: Path, tmp_path: Path) -> None:
    done = _call(bundle, "-o", tmp_path / "run.json", "--protocol", "paper")
    assert isinstance(done.exception, NotFound)


def test_a_token_that_the_model_lacks_is_refused(demo: Path, tmp_path: Path) -> None:
    shutil.copytree(demo, tmp_path / "small")
    document = read_bundle(tmp_path / "small")
    document["anatomy"]["vocab"] = 3
    document["model"]["origin"] = "built-in"
    with pytest.raises(UsageError, match="the model only 3"):
        reading(demo, document, 8, None)


@given(
    st.builds(
        Workload,
        *[st.integers(0, 10_000)] * 5,
        st.sampled_from([None, "paper"]),
        st.none()
        | st.builds(
            Text, st.text(), st.text(), st.lists(st.integers(0, 200_000)).map(lambda t: tuple(t))
        ),
    )
)
def test_a_workload_comes_back_from_its_document(work: Workload) -> None:
    assert Workload.read(json.loads(json.dumps(work.document()))) == work
    assert "tokens" not in json.dumps(work.asked().get("text"))


# --- what is said of it


def paper(base: results.Run, seconds: float, logits: int = 128) -> results.Run:
    work = dataclasses.replace(
        base.workload, protocol="paper", text=results.Text("WikiText-2 train", "ab" * 32)
    )
    series = {**base.series, "forward_seconds": results.Series("s", (seconds,) * 100)}
    environment = {**base.environment, "forward_logits": logits}
    return dataclasses.replace(base, workload=work, series=series, environment=environment)


def test_passes_are_compared_where_both_have_them() -> None:
    compared = compare(paper(run(), 2.0), paper(run("w8a8"), 0.5))
    row = compared.row("forward_rate")
    assert (row.quantity, row.ratio) == ("forward pass, 128 tokens", 4.0)
    assert not any("protocol" in note or "text" in note for note in compared.notes)
    assert compared.row("decode_rate").ratio == 2.0  # and enter no score
    assert compared.score.parts == compare(run(), run("w8a8")).score.parts


def test_unlike_protocols_are_labelled_and_their_passes_not_compared() -> None:
    compared = compare(run(), paper(run("w8a8"), 0.5))
    assert compared.row("forward_rate").ratio is None
    assert any(note.startswith("protocol: none against paper") for note in compared.notes)
    assert "text that is read: golden prompts against WikiText-2 train" in compared.notes
    assert "forward_rate" not in [row.key for row in compare(run(), run("w8a8")).rows]


def test_passes_with_other_logits_are_not_compared() -> None:
    compared = compare(paper(run(), 2.0), paper(run("w8a8"), 0.5, logits=64))
    assert compared.row("forward_rate").ratio is None
    assert "logits of 128 against 64 positions" in str(compared.row("forward_rate").reason)


def test_passes_of_torch_are_compared_with_torchs_alone() -> None:
    """Its passes end before their logits are on the host."""

    def in_torch(base: results.Run, seconds: float) -> results.Run:
        found = paper(base, seconds)
        return dataclasses.replace(found, environment={**found.environment, "torch": "2.13.0"})

    assert (
        compare(in_torch(run(), 2.0), in_torch(run("w8a8"), 0.5)).row("forward_rate").ratio == 4.0
    )
    row = compare(paper(run(), 2.0), in_torch(run("w8a8"), 0.5)).row("forward_rate")
    assert row.ratio is None
    assert "handed to the host" in str(row.reason)


def test_another_text_of_the_same_name_is_told() -> None:
    other = paper(run("w8a8"), 0.5)
    text = results.Text("WikiText-2 train", "cd" * 32)
    other = dataclasses.replace(other, workload=dataclasses.replace(other.workload, text=text))
    notes = compare(paper(run(), 2.0), other).notes
    assert any("another text of that name" in note for note in notes)


def test_passes_that_drift_make_a_run_inconclusive() -> None:
    steady = results.Series("s", (1.0,) * 6)
    series = dict.fromkeys(("load_seconds", "prefill_seconds", "decode_seconds"), steady)

    def codes(passes: tuple[float, ...]) -> list[str]:
        seen = {**series, "forward_seconds": results.Series("s", passes)}
        found = doubts(Evidence(seen, {}, WORKLOAD, GOLDEN, None))
        return [caveat.code for caveat in found]

    assert "inconclusive" not in codes((1.0,) * 100)
    assert "inconclusive" in codes((1.0,) * 50 + (1.5,) * 50)


def test_a_pass_beyond_the_device_is_implausible() -> None:
    from slmq_edge import bounds

    def found(seconds: float) -> tuple[str, ...]:
        facts = {"fp16_dense_flops": {"value": 1e12, "source": "x"}}
        device = results.Device("board", "cpu", facts)
        return bounds.implausible(dataclasses.replace(paper(run(), seconds), device=device))

    assert found(2.0) == ()
    assert any(line.startswith("forward pass") for line in found(1e-6))
