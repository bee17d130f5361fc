"""The command line as users type it: every verb, and one clear line for every mistake."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from slmq_edge import builtin, models
from tests import warm
from tests.decoders import QWEN2, QWEN3, random_decoder, write_folder

# What a small export needs, so that a test takes seconds.
SMALL = ("--windows", "8", "--length", "64", "--steps", "2", "--activations", "symmetric")


def slmq(*arguments: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command line; with ``variables``, which imports may read, from the very beginning."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd / "hub"), **variables}
    if not variables:
        return warm.run([str(one) for one in arguments], cwd, environment)
    command = [sys.executable, "-m", "slmq_edge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


def assert_one_line(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """The process failed with ``code`` and said so in a single line that holds ``words``."""
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in errors[0]


def nothing_written(folder: Path) -> bool:
    return {path.name for path in folder.iterdir()} <= {"hub"}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Baseline, bundle and both runs of the built-in model, made as the README says."""
    folder = tmp_path_factory.mktemp("demo")
    for arguments in (
        ("export", "demo-llama", "--method", "spinquant", *SMALL, "-o", "bundle"),
        ("export", "demo-llama", "--method", "none", "--scheme", "fp32", "-o", "baseline"),
        ("profile", "bundle", "-p", 32, "-n", 8, "-r", 2, "-o", "bundle-run.json"),
        ("profile", "baseline", "-p", 32, "-n", 8, "-r", 2, "-o", "baseline-run.json"),
    ):
        done = slmq(*arguments, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def test_the_main_job_end_to_end(bundles: Path) -> None:
    done = slmq("compare", "-b", "baseline-run.json", "-c", "bundle-run.json", cwd=bundles)
    assert done.returncode == 0, done.stderr
    assert "SLMQ_infer" in done.stdout
    run = json.loads((bundles / "bundle-run.json").read_text())
    assert run["artifact"]["scheme_ran"] == "w8a8"
    assert len(run["series"]["decode_seconds"]["values"]) == 2


def test_runs_and_manifests_are_machine_readable(bundles: Path) -> None:
    flags = ("-p", 8, "-n", 2, "-r", 1, "--json", "-o", "other.json")
    profiled = slmq("profile", "bundle", *flags, cwd=bundles)
    assert json.loads(profiled.stdout) == json.loads((bundles / "other.json").read_text())
    compared = slmq("compare", "-b", "baseline-run.json", "-c", "bundle-run.json", "--json",
                    cwd=bundles)  # fmt: skip
    assert compared.returncode == 0, compared.stderr
    json.loads(compared.stdout)


def test_a_checkpoint_is_exported_as_it_stands(bundles: Path) -> None:
    quantize = ("quantize", "demo-qwen2", "--method", "smoothquant", "--scheme", "w4a8")
    done = slmq(*quantize, "--windows", "8", "--length", "64", "-o", "ckpt", "--json", cwd=bundles)
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert manifest["method"] == "smoothquant"
    assert manifest["cost"]["seconds"] > 0
    assert manifest["calibration"]["windows"] == 8
    done = slmq("export", "ckpt", "-o", "from-ckpt", "--json", cwd=bundles)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["lowering"]["scheme_ran"] == "w4a8"
    again = slmq("export", "ckpt", "--scheme", "w8a8", "--steps", 9, "-o", "other", cwd=bundles)
    assert_one_line(again, 2, "is a checkpoint", "--scheme", "--steps")
    assert_one_line(slmq("export", "ckpt", "-o", "ckpt", "--force", cwd=bundles), 2, "is read")
    assert_one_line(slmq("quantize", "ckpt", "-o", "other", cwd=bundles), 2, "export it")
    assert_one_line(slmq("profile", "ckpt", cwd=bundles), 2, "is a checkpoint", "--runtime torch")


@pytest.mark.slow
def test_a_folder_of_qwen3_goes_to_a_measured_bundle(tmp_path: Path) -> None:
    """Norms of heads, and after them all that is online: R3, rounded keys and values, R4."""
    words = builtin.folder("demo-qwen2")
    vocab = models.read_anatomy(words).vocab
    shape = dataclasses.replace(QWEN3, vocab=vocab, max_positions=512)
    folder = write_folder(random_decoder(shape, seed=4), tmp_path / "tiny-qwen3")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(words / name, folder)
    flags = ("--method", "spinquant", "--scheme", "w4a8", "--kv", 8, *SMALL)
    done = slmq("export", "tiny-qwen3", *flags, "-o", "bundle", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert manifest["anatomy"]["qk_norm"]
    assert manifest["lowering"]["online_rotations"] == ["queries and keys", "input of down_proj"]
    assert manifest["counts"]["parameters"] == shape.parameters
    done = slmq("profile", "bundle", "-p", 16, "-n", 4, "-r", 1, "-o", "run.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run.json").read_text())["artifact"]["scheme_ran"] == "w4a8"


def test_the_shortest_line_offline(tmp_path: Path) -> None:
    """``slmq-edge export --method spinquant``, exactly as typed."""
    done = slmq("export", "--method", "spinquant", cwd=tmp_path)
    assert_one_line(done, 1, "HuggingFaceTB/SmolLM-135M", "from the hub", "demo-llama")
    assert nothing_written(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("export", "demo-lama"), 1, ("did you mean demo-llama",)),
        (("export", "demo-llama", "--method", "spinqant"), 2, ("did you mean spinquant",)),
        (("export", "demo-llama", "--scheme", "w8a9"), 2, ("did you mean w8a8",)),
        (("export", "demo-llama", "--target", "orth"), 2, ("did you mean ort",)),
        (("export", "demo-llama", "--lm-head", "int9"), 2, ("did you mean int8",)),
        (("export", "demo-llama", "--device", "cuda"), 2, ("torch sees no CUDA device",)),
        (("export", "demo-llama", "--calib", "no.txt"), 1, ("no calibration text at no.txt",)),
        (("export", "demo-llama", "--alpha", "0.5"), 2, ("no setting --alpha",)),
        (("export", "demo-llama", "--method", "none", "--windows", "9"), 2, ("not calibrate",)),
        (
            ("export", "demo-llama", "--method", "smoothquant", "--alpha", "2"),
            2,
            ("between 0 and 1",),
        ),
        (("export", "demo-llama", "--scheme", "fp32"), 1, ("use --method none",)),
        (
            ("export", "demo-llama", "--method", "none", "--scheme", "fp32", "--lm-head", "int8"),
            2,
            ("has no int8 lm_head",),
        ),
        (
            ("export", "demo-llama", "--method", "none", "--lm-head", "int4"),
            1,
            ("lm_head of int4", "use --lm-head int8"),
        ),
        (("export", "demo-llama", "-o", "/dev/null/bundle"), 1, ("cannot write",)),
        (("quantize", "some/where/else"), 1, ("no model 'some/where/else'",)),
        (("profile", "nothing"), 1, ("no bundle at nothing",)),
        (("compare", "-b", "a.json", "-c", "b.json"), 1, ("a.json",)),
    ],
)
def test_a_mistake_is_one_line(
    arguments: tuple[str, ...], code: int, words: tuple[str, ...], tmp_path: Path
) -> None:
    done = slmq(*arguments, cwd=tmp_path)
    assert_one_line(done, code, *words)
    assert nothing_written(tmp_path)


def test_an_unknown_option_is_a_usage_error(tmp_path: Path) -> None:
    done = slmq("export", "--metod", "none", cwd=tmp_path)
    assert done.returncode == 2
    assert "--method" in done.stderr


def test_a_text_too_short_to_calibrate(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Too short to learn anything from.")
    done = slmq("export", "demo-llama", "--calib", "short.txt", "-o", "bundle", cwd=tmp_path)
    assert_one_line(done, 1, "too short", "short.txt")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.jsonl", '{"text": "a"}\n{"txt": "b"}\n', ("line 2", "no 'text' field")),
        ("rows.jsonl", '{"text": "a"}\n{"text"', ("line 2", "not JSON")),
    ],
)
def test_a_broken_calibration_file_names_its_line(
    name: str, content: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    done = slmq("export", "demo-llama", "--calib", name, cwd=tmp_path)
    assert_one_line(done, 1, *words)


def test_an_unknown_architecture_lists_the_known(tmp_path: Path) -> None:
    folder = write_folder(random_decoder(QWEN2, seed=1), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gemma3_text"}))
    done = slmq("export", "model", "-o", "bundle", cwd=tmp_path)
    assert_one_line(done, 1, "gemma3_text", "known: llama, qwen2, qwen3")


def test_a_damaged_bundle_is_refused_by_name(bundles: Path, tmp_path: Path) -> None:
    shutil.copytree(bundles / "bundle", tmp_path / "bundle")
    data = tmp_path / "bundle" / "ort" / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])
    done = slmq("profile", "bundle", cwd=tmp_path)
    assert_one_line(done, 1, "ort/model.onnx.data is truncated")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_outputs_are_not_overwritten_without_force(bundles: Path) -> None:
    for arguments in (
        ("export", "demo-llama", "--method", "none", "-o", "bundle"),
        ("profile", "bundle", "-o", "bundle-run.json"),
    ):
        assert_one_line(slmq(*arguments, cwd=bundles), 1, "without --force")


@pytest.mark.parametrize(
    ("missing", "arguments", "words"),
    [
        ("torch", ("export", "demo-llama"), ("torch is not installed", "slmq-edge[quantize]")),
        ("onnx_ir", ("export", "demo-llama"), ("onnx-ir is not installed", "slmq-edge[onnx]")),
    ],
)
def test_a_missing_extra_says_what_to_install(
    missing: str, arguments: tuple[str, ...], words: tuple[str, ...], tmp_path: Path
) -> None:
    # A module of that name that fails to import stands for one that is not installed.
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / f"{missing}.py").write_text("raise ImportError('not installed')")
    done = slmq(*arguments, cwd=tmp_path, PYTHONPATH=str(tmp_path / "path"))
    assert_one_line(done, 1, *words)


def test_without_onnxruntime_a_bundle_is_made_but_not_run(tmp_path: Path) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "onnxruntime.py").write_text("raise ImportError('not installed')")
    variables = {"PYTHONPATH": str(tmp_path / "path")}
    arguments = ("export", "demo-llama", "--method", "none", "-o", "bundle", "--json")
    done = slmq(*arguments, cwd=tmp_path, **variables)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verified"] is None
    done = slmq("profile", "bundle", cwd=tmp_path, **variables)
    assert_one_line(done, 1, "onnxruntime is not installed", "slmq-edge[cpu]")


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A real one: a file system of 2 MB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        arguments = ("export", "demo-llama", "--method", "none", "--scheme", "fp32")
        done = slmq(*arguments, "-o", disk / "bundle", cwd=tmp_path)
        assert_one_line(done, 1, "not enough disk space")
        # Foreseen it was; and unforeseen:
        program = (
            "from pathlib import Path; from slmq_edge.files import new_folder\n"
            f"with new_folder(Path({str(disk / 'bundle')!r})) as folder:\n"
            "    (folder / 'big').write_bytes(bytes(4_000_000))\n"
        )
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert "SlmqError: the disk is full" in run.stderr
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
