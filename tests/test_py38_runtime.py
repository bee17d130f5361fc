"""The whole way through a real Python 3.8 with the newest onnxruntime and numpy that it can have.

``make test-py38``. What a JetPack 5 has; the host, which reads the journal, is the one of today.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import oldest_python, whole_way
from tests.test_runtimes import OLDEST
from tests.whole_way import FORMS, TOY, assert_whole, measured

pytestmark = pytest.mark.py38


@pytest.mark.parametrize("form", [TOY, *FORMS])
def test_a_bundle_is_measured(form: str, tmp_path: Path) -> None:
    run = measured(oldest_python.with_onnxruntime(), whole_way.write(form, tmp_path), tmp_path)
    assert_whole(run, form, tmp_path)
    assert run.environment["python"].startswith("3.8.")
    assert (run.environment["onnxruntime"], run.environment["numpy"]) == (OLDEST, "1.24.4")
