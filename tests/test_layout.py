"""The map in pyproject.toml, the links, and the folders tell one story; importing stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHELVES = ("exporters", "profiles", "devices")
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
HEAVY = (
    "torch",
    "transformers",
    "onnxruntime",
    "onnx",
    "onnx_ir",
    "lm_eval",
    "optimum",
    "numpy",
)


@pytest.mark.parametrize("shelf", SHELVES)
def test_a_shelf_is_a_real_folder_a_link_and_a_line_of_the_map(shelf: str) -> None:
    link = ROOT / "slmq_edge" / shelf
    assert (ROOT / shelf).is_dir()
    assert not (ROOT / shelf).is_symlink()
    assert link.is_symlink()
    assert link.readlink() == Path("..") / shelf
    assert SETUPTOOLS["package-dir"][f"slmq_edge.{shelf}"] == shelf


def test_every_package_is_listed_and_every_listed_package_is_there() -> None:
    def is_package(folder: Path) -> bool:
        return (folder / "__init__.py").is_file()

    def found(folder: Path, name: str) -> Iterator[str]:
        yield name
        for inner in filter(is_package, folder.iterdir()):
            yield from found(inner, f"{name}.{inner.name}")

    listed = SETUPTOOLS["packages"]
    assert sorted(found(ROOT / "slmq_edge", "slmq_edge")) == sorted(listed)
    for name, folder in SETUPTOOLS["package-dir"].items():
        assert (ROOT / name.replace(".", "/")).resolve() == ROOT / folder


def test_nothing_imports_a_bare_shelf() -> None:
    for file in [*(ROOT / "slmq_edge").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [str(node.module)]
            assert not {name.split(".")[0] for name in names} & set(SHELVES), file


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["export", "--help"],
        ["analyze", "--help"],
        ["distributions", "--help"],
        ["generate", "--help"],
        ["inspect", "--help"],
        ["lint", "--help"],
        ["doctor", "--help"],
        ["compare", "--help"],
        ["eval", "--help"],
        ["gap", "--help"],
        ["reproduce", "--help"],
        ["estimate", "--help"],
        ["report", "cost", "--help"],
        ["devices", "list", "--help"],
    ],
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from slmq_edge.cli import main\n"
        f"sys.argv = ['slmq-edge', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "HEAVY []" in done.stdout
    assert "Usage:" in done.stdout


def test_an_old_python_is_refused_in_one_line() -> None:
    """The guard stands before every import that an old Python could not read."""
    text = (ROOT / "slmq_edge" / "cli.py").read_text()
    tree = ast.parse(text, feature_version=(3, 8))
    kinds = [type(node).__name__ for node in tree.body]
    assert kinds[:3] == ["Expr", "Import", "If"]
    assert "needs Python 3.11" in text


@pytest.mark.slow
def test_the_wheel_holds_the_shelves_and_their_data(tmp_path: Path) -> None:
    """Built in isolation, which fetches the build tool."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(tmp_path), "."]
    subprocess.run(command, check=True, cwd=ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for expected in (
        "slmq_edge/exporters/onnx.py",
        "slmq_edge/profiles/cpu.py",
        "slmq_edge/devices/facts/generic-x86_64.toml",
        "slmq_edge/builtin/demo-llama/model.safetensors",
        "slmq_edge/runner/__main__.py",
        "slmq_edge/py.typed",
    ):
        assert expected in names
    assert not any(name.split("/")[0] in SHELVES for name in names)
