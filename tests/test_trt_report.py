"""What a machine says of itself, and the two commands as they are typed."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from slmq_edge.cli import app
from slmq_edge.errors import Damaged, NotFound, SlmqError
from slmq_edge.runner.trt import __main__ as device_main
from slmq_edge.runner.trt import build, cache, cuda, memory, report
from tests import trt_bundle
from tests.fake_builder import Fake

PRIVATE = ("somebody", "/home", "/tmp", "/root")


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle on an Orin with TensorRT 10.3, where building works."""
    monkeypatch.setitem(sys.modules, "tensorrt", Fake("10.3.0", trt_bundle.recipe().int8).module)
    engine = types.ModuleType("slmq_edge.runner.trt.engine")
    engine.open_engine = lambda found: trt_bundle.ToySession()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "slmq_edge.runner.trt.engine", engine)
    monkeypatch.setattr(memory, "free", lambda device: None)
    trt_bundle.pretend(monkeypatch)
    return trt_bundle.write(tmp_path / "bundle")


def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No TensorRT, no trtexec, no GPU."""

    def gone() -> cuda.Device:
        raise NotFound("no GPU that CUDA can use is here: /home/somebody/lib/libcudart.so is odd")

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(cuda, "device", gone)
    monkeypatch.setenv("PATH", "")


def test_a_bare_machine_reports_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    _bare(monkeypatch)
    found = report.report(())
    assert set(found["missing"]) == {"tensorrt", "trtexec", "gpu"}
    assert found["missing"]["gpu"].endswith(": libcudart.so is odd")
    assert found["tensorrt"] is found["gpu"] is found["trtexec"] is None
    assert json.loads(json.dumps(found)) == found


def test_a_machine_is_described(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "nv_tegra_release").write_text(
        "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n"
    )
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_bytes(b"NVIDIA Jetson Orin Nano\0")
    found = report.here(str(tmp_path))
    assert found["tensorrt"] == "10.3.0"
    assert (found["gpu"], found["sm"], found["cuda"]) == ("Orin", "87", "12.6")
    assert found["integrated"] is True
    assert found["board"] == "NVIDIA Jetson Orin Nano"
    assert (found["l4t"], found["jetpack"]) == ("36.4.3", "6.1 or 6.2")


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("35.4.1", "5.1"),
        ("35.1.0", "5.0.2"),
        ("36.3.0", "6.0"),
        ("39.2", "7.2"),
        ("32.7.1", None),
        (None, None),
    ],
)
def test_jetpacks(release: str | None, expected: str | None) -> None:
    assert report.jetpack(release) == expected


def test_what_was_built_is_told_and_nothing_private(bundle: Path) -> None:
    build.build(build.Request(bundle), lambda text: None)
    found = report.report([bundle])
    (of_bundle,) = found["bundles"]
    assert of_bundle["model"] == "toy"
    (engine,) = of_bundle["engines"]
    assert engine["of_this_graph"] is True
    assert engine["int8_products"] == 4
    assert engine["golden"]["mean_kl"] < 1e-4
    assert engine["identity"]["gpu"] == "Orin"
    assert "log" not in engine
    text = json.dumps(found)
    assert not [word for word in PRIVATE if word in text]


def test_a_failed_check_is_told(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["slmq_edge.runner.trt.engine"]
    monkeypatch.setattr(module, "open_engine", lambda found: trt_bundle.ToySession(seed=5))
    with pytest.raises(SlmqError):
        build.build(build.Request(bundle), lambda text: None)
    (engine,) = report.report([bundle])["bundles"][0]["engines"]
    assert engine["golden"] is None
    assert engine["golden_error"].startswith("golden check failed: ")


def test_a_damaged_sidecar_is_told(bundle: Path) -> None:
    (bundle / cache.ENGINES).mkdir()
    (bundle / cache.ENGINES / "x.json").write_text("{")
    (of_bundle,) = report.report([bundle])["bundles"]
    assert of_bundle["problem"].startswith("x.json is no engine's sidecar")


def _run(folder: Path, **fields: Any) -> Path:
    document = {
        "format": "slmq-edge-run",
        "version": 1,
        "artifact": {"model": "/home/somebody/models/toy", "scheme_ran": "w8a8"},
        "device": {"name": "jetson", "kind": "jetson", "facts": {}},
        "environment": {"cpu_model": "Arm", "affinity": [0], "gpu": "Orin", "home": "/home/x"},
        "workload": {"prompt_tokens": 128},
        "golden": {"mean_kl": 1e-6},
        "memory": {},
        "series": {"prefill_seconds": {"unit": "s", "values": [3.0, 1.0, 2.0]}},
        **fields,
    }
    path = folder / "run.json"
    path.write_text(json.dumps(document))
    return path


def test_timings_of_a_run_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _bare(monkeypatch)
    (told,) = report.report((), runs=[_run(tmp_path)])["runs"]
    assert told["series"] == {"prefill_seconds": {"unit": "s", "count": 3, "median": 2.0}}
    assert told["artifact"]["model"] == "toy"
    assert told["environment"] == {"cpu_model": "Arm", "gpu": "Orin"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "other"}, "is no run"),
        ({"series": {"prefill_seconds": {}}}, "is damaged"),
        ({"series": {"prefill_seconds": {"unit": "s", "values": []}}}, "is damaged"),
        ({"artifact": 3}, "is damaged"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(Damaged, match=message):
        report.report((), runs=[_run(tmp_path, **fields)])
    with pytest.raises(NotFound, match="cannot be read"):
        report.report((), runs=[tmp_path / "nowhere.json"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"),
        ("/home/somebody/toy", "toy"),
        ("../somebody/toy", "toy"),
        ("~/toy", "toy"),
        ("models/somebody/toy", "toy"),
        ("C:\\Users\\somebody\\toy", "toy"),
        ("demo-llama", "demo-llama"),
    ],
)
def test_of_a_path_only_the_last_part_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: str
) -> None:
    _bare(monkeypatch)
    (told,) = report.report((), runs=[_run(tmp_path, artifact={"model": name})])["runs"]
    assert told["artifact"]["model"] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/some body/lib/x.so: no", "x.so: no"),
        ("cannot read '/home/some body/engines/a.plan'", "cannot read 'a.plan'"),
        ("work/somebody/engines/a.json is none", "a.json is none"),
        ("../somebody/a.json is none", "a.json is none"),
        ("~/somebody/a.json is none", "a.json is none"),
        ("mean KL is 3, 0.5 of 1", "mean KL is 3, 0.5 of 1"),
    ],
)
def test_of_errors_no_folder_is_told(
    monkeypatch: pytest.MonkeyPatch, text: str, expected: str
) -> None:
    monkeypatch.setenv("HOME", "/home/some body")
    assert report._without_paths(text) == expected


# --- as it is typed


def test_build_as_it_is_typed(bundle: Path) -> None:
    done = CliRunner().invoke(app, ["build", str(bundle), "--context", "256"])
    assert done.exit_code == 0, done.output
    assert "4 of 4" in done.stdout
    assert "room for 256" in done.stdout
    assert "checking golden prompts" in done.stderr
    done = CliRunner().invoke(app, ["build", str(bundle), "--context", "256", "--json"])
    assert json.loads(done.stdout)["scheme_ran"] == "w8a8"
    assert "is there already" in done.stderr


def test_report_as_it_is_typed(bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    done = CliRunner().invoke(
        app, ["trt", "report", str(bundle), "--run", str(_run(tmp_path)), "-o", str(output)]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(output.read_text(encoding="utf-8"))
    assert found["format"] == "slmq-edge-trt-report"
    assert found["bundles"][0]["engines"] == []
    assert len(found["runs"]) == 1
    again = CliRunner().invoke(app, ["trt", "report", "-o", str(output)])
    assert isinstance(again.exception, SlmqError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "{}/bundel"], "no bundle at .* \\(did you mean bundle\\?\\)"),
        (["build", "{}"], "is not a bundle"),
        (["trt", "report", "{}/bundel"], "no bundle at"),
    ],
)
def test_mistakes_are_one_line(
    bundle: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    typed = [word.format(tmp_path) for word in arguments]
    with pytest.raises(SlmqError, match=message):
        CliRunner().invoke(app, typed, catch_exceptions=False)


# --- on the device, by an old Python


def test_the_device_needs_no_slmq_edge_command(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert device_main.main(["build", str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scheme_ran"] == "w8a8"
    assert device_main.main(["build", str(bundle)]) == 0
    assert "4 of 4" in capsys.readouterr().out
    assert device_main.main(["report", str(bundle)]) == 0
    assert len(json.loads(capsys.readouterr().out)["bundles"][0]["engines"]) == 1


def test_on_the_device_a_mistake_is_one_line(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert device_main.main(["build", str(bundle), "--prompt", "9999"]) == 2
    assert (
        capsys.readouterr().err
        == "error: --prompt is 9999: it must be between 1 and the context, 512\n"
    )

    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "build", interrupted)
    assert device_main.main(["build", str(bundle)]) == 130
    assert capsys.readouterr().err == "interrupted: nothing half-done is left\n"


def test_the_report_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Nothing but the standard library and numpy is imported, and nothing is needed."""
    program = (
        "import sys; from slmq_edge.runner.trt import __main__\n"
        "code = __main__.main(['report'])\n"
        "heavy = [n for n in ('typer', 'rich', 'torch', 'onnx', 'psutil') if n in sys.modules]\n"
        "sys.exit(code or len(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["format"] == "slmq-edge-trt-report"


@pytest.mark.parametrize("verb", [["build"], ["trt", "report"]])
def test_help_imports_nothing_heavy(verb: list[str]) -> None:
    program = (
        "import sys; from slmq_edge.cli import main\n"
        f"sys.argv = ['slmq-edge', *{verb!r}, '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = [n for n in ('numpy', 'torch', 'onnx', 'tensorrt') if n in sys.modules]\n"
        "sys.exit(len(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout
