"""The device's half of a conversation under a real Python 3.8, which has no package at all."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from slmq_edge.errors import Unsupported
from slmq_edge.remote import package, upload
from slmq_edge.remote.agent import Agent
from slmq_edge.remote.target import Target
from slmq_edge.remote.transport import LocalTransport
from tests import oldest_python, toy_graph

pytestmark = pytest.mark.py38


@pytest.fixture(scope="module")
def python38() -> str:
    return oldest_python.find()


def test_the_agent_answers(python38: str, tmp_path: Path) -> None:
    target = Target("board", "local", python=python38)
    transport = LocalTransport(tmp_path)
    agent = Agent(transport, target)
    found = agent.ask("probe", profile="cpu")
    assert found["python"].startswith("3.8.")
    assert set(found["packages"]) >= {"numpy", "onnxruntime"}
    assert found["boot_id"]
    for kind in ("fake", "cpu"):
        assert agent.ask("probe", profile=kind)["profile"]["kind"] == kind
    with pytest.raises(Unsupported, match="did you mean probe"):
        agent.ask("prob")


def test_a_bundle_is_kept_and_assembled(python38: str, tmp_path: Path) -> None:
    """have, place, assemble, gc, and names that are not ASCII in a login without a locale."""
    bundle = toy_graph.write_bundle(tmp_path / "bundle")
    (bundle / "ort" / "ünï 模型").write_text("x")
    toy_graph.seal(bundle)
    target = Target("board", "local", python=python38)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LC_ALL", "POSIX")
        transport = LocalTransport(tmp_path)
        agent = Agent(transport, target)
        folder = Path(upload.push(agent, transport, bundle, lambda done, total: None))
        assert (folder / "ort" / "ünï 模型").read_text() == "x"
        assert upload.push(agent, transport, bundle, lambda done, total: None) == str(folder)
        assert agent.ask("gc", days=0)["freed_bytes"] > 0
    assert not folder.exists()


def test_every_file_compiles(python38: str, tmp_path: Path) -> None:
    archive = package.runner_zipapp(tmp_path)
    program = (
        "import sys, zipfile\n"
        "with zipfile.ZipFile(sys.argv[1]) as archive:\n"
        "    for name in archive.namelist():\n"
        "        compile(archive.read(name), name, 'exec')\n"
    )
    subprocess.run([python38, "-W", "error", "-c", program, str(archive)], check=True)


def test_all_that_needs_no_package_is_imported(python38: str, tmp_path: Path) -> None:
    """Annotations are not evaluated, but base classes, defaults and aliases are."""
    archive = package.runner_zipapp(tmp_path)
    program = (
        "import importlib, sys, zipfile\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "missing = set()\n"
        "for name in zipfile.ZipFile(sys.argv[1]).namelist():\n"
        "    module = name[:-3].replace('/', '.').replace('.__init__', '')\n"
        "    if name == '__main__.py':\n"
        "        continue\n"
        "    try:\n"
        "        importlib.import_module(module)\n"
        "    except ModuleNotFoundError as error:\n"
        "        missing.add(error.name)\n"
        "print(*sorted(missing))\n"
    )
    done = subprocess.run(
        [python38, "-I", "-c", program, str(archive)], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) <= {"numpy", "onnxruntime"}, done.stdout
