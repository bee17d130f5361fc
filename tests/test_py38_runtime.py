"""The whole way through a real Python 3.8 with the newest onnxruntime and numpy that it can have.

``make test-py38``. What a JetPack 5 has; the host, which reads the journal, is the one of today.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from slmq_edge.remote.run import Remote
from slmq_edge.remote.target import Target
from slmq_edge.tracks.accuracy.scorers import Asked, open_scorer
from tests import oldest_python, toy_graph, whole_way
from tests.test_runtimes import OLDEST
from tests.test_scoring import expected, texts
from tests.whole_way import FORMS, TOY, assert_whole, measured

pytestmark = pytest.mark.py38


@pytest.mark.parametrize("form", [TOY, *FORMS])
def test_a_bundle_is_measured(form: str, tmp_path: Path) -> None:
    run = measured(oldest_python.with_onnxruntime(), whole_way.write(form, tmp_path), tmp_path)
    assert_whole(run, form, tmp_path)
    assert run.environment["python"].startswith("3.8.")
    assert (run.environment["onnxruntime"], run.environment["numpy"]) == (OLDEST, "1.24.4")


def test_sequences_are_scored(tmp_path: Path) -> None:
    bundle, asked = toy_graph.write_bundle(tmp_path / "bundle"), texts(40)
    python = oldest_python.with_onnxruntime()
    target = Target("board", "local", python=str(python), home=str(tmp_path / "device"))
    with Remote(target) as machine:
        scorer = open_scorer(Asked(str(bundle), machine, threads=1))
        assert scorer.identity["versions"]["onnxruntime"] == OLDEST
        found = scorer.score(asked, lambda done, total: None)
    for sequence, score in zip(asked, found, strict=True):
        assert score.logprob == pytest.approx(expected(sequence)[0], abs=1e-4)
