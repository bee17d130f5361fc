"""The runner as one file: the same bytes everywhere, and nothing of ours needed beside it."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from slmq_edge.remote import package

ROOT = Path(__file__).resolve().parents[1]
OF_DEVICE = (3, 8)
# What a device may have beside Python; imported where it is needed.
OTHERS = {
    "numpy",
    "onnxruntime",
    "tensorrt",
    "tensorrt_rtx",
    "torch",
    "tokenizers",
    "psutil",
    "jtop",
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package.runner_zipapp(tmp_path_factory.mktemp("archive"))


def sources(archive: Path) -> dict[str, str]:
    with zipfile.ZipFile(archive) as opened:
        return {name: opened.read(name).decode() for name in opened.namelist()}


def test_its_name_is_its_digest(archive: Path) -> None:
    assert archive.stem == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert archive.suffix == ".pyz"


def test_another_checkout_at_another_time_gives_the_same_bytes(
    archive: Path, tmp_path: Path
) -> None:
    """Another folder, other dates, another order on the disk, other rights, other line ends."""
    copy = tmp_path / "elsewhere"
    shutil.copytree(package.PACKAGE, copy / "slmq_edge", ignore=shutil.ignore_patterns("builtin"))
    for file in copy.rglob("*.py"):
        file.chmod(0o700)
        os.utime(file, (0, 0))
    errors = copy / "slmq_edge" / "errors.py"
    errors.write_bytes(errors.read_bytes().replace(b"\n", b"\r\n"))
    (copy / "slmq_edge" / "runner" / "left.pyc").write_bytes(b"no source")
    program = (
        "from pathlib import Path; from slmq_edge.remote.package import runner_zipapp;"
        "print(runner_zipapp(Path()))"
    )
    variables = {**os.environ, "PYTHONPATH": str(copy), "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True
    )
    other = tmp_path / done.stdout.strip()
    assert other.name == archive.name
    assert other.read_bytes() == archive.read_bytes()


def test_it_holds_sources_alone_and_all_that_runs_on_a_device(archive: Path) -> None:
    names = set(sources(archive))
    assert all(name.endswith(".py") for name in names)
    expected = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "slmq_edge/runner").rglob("*.py")
    }
    expected |= {
        f"slmq_edge/{path.relative_to(ROOT)}" for path in (ROOT / "profiles").rglob("*.py")
    }
    assert names == expected | {"__main__.py", "slmq_edge/__init__.py", "slmq_edge/errors.py"}


def test_every_file_is_python_of_the_device(archive: Path) -> None:
    for name, text in sources(archive).items():
        ast.parse(text, name, feature_version=OF_DEVICE)


def test_first_contact_is_python_3_6_and_imports_nothing_else(archive: Path) -> None:
    tree = ast.parse(sources(archive)["slmq_edge/runner/bootstrap.py"], feature_version=(3, 6))
    for node in ast.walk(tree):
        assert not isinstance(node, ast.ImportFrom)
        if isinstance(node, ast.Import):
            assert {alias.name for alias in node.names} <= sys.stdlib_module_names


def test_it_imports_what_it_holds_and_what_a_device_has(archive: Path) -> None:
    files = sources(archive)
    modules = {name[:-3].replace("/", ".").replace(".__init__", "") for name in files}
    for name, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, name
                names = [str(node.module)]
            else:
                continue
            for imported in names:
                top = imported.partition(".")[0]
                known = sys.stdlib_module_names | OTHERS
                assert imported in modules or (top != "slmq_edge" and top in known), (
                    name,
                    imported,
                )


def test_it_runs_isolated_with_nothing_of_ours_beside_it(archive: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-I", str(archive), str(tmp_path / "no.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["error"] == "Damaged"
    assert done.stderr.startswith("error: ")
