"""plan.toml: what it means, and one clear line for what it cannot mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmq_edge.bench import matrix, plan, verbs
from slmq_edge.bench.cells import Cell, identities
from slmq_edge.errors import NotFound, SlmqError, UsageError
from tests.shared import shared

SMALL = """
[matrix]
models = ["demo-llama"]
methods = ["none", "gptq"]
schemes = ["w8a8", "w4a8"]
"""


def read(tmp_path: Path, text: str, **folders: str) -> plan.Plan:
    path = tmp_path / "plan.toml"
    path.write_text(text, "utf-8")
    return plan.read(path, folders)


def cells(tmp_path: Path, text: str, **folders: str) -> dict[str, Cell]:
    found = matrix.cells_of(read(tmp_path, text, **folders), tmp_path / "out")
    return {cell.id: cell for cell in found}


def words(cell: Cell, option: str) -> list[str]:
    """What follows an option in a cell's command, each time that it is there."""
    return [b for a, b in zip(cell.command, cell.command[1:], strict=False) if a == option]


def test_a_combination_is_quantized_once_and_serves_every_target_and_track(tmp_path: Path) -> None:
    found = cells(
        tmp_path,
        """
        [matrix]
        models = ["demo-llama"]
        methods = ["gptq"]
        schemes = ["w4a8"]
        targets = ["ort", "ort-cuda"]
        [profile]
        repetitions = 3
        [eval]
        of = ["model", "checkpoint", "bundle"]
        tasks = ["piqa", "arc_easy"]
        """,
    )
    name = "demo-llama-gptq-w4a8"
    assert found[f"quantize-{name}"].command == (
        "quantize", "demo-llama", "--method", "gptq", "--scheme", "w4a8",
        "-o", f"checkpoints/{name}",
    )  # fmt: skip
    for target in ("ort", "ort-cuda"):
        export = found[f"export-{name}-{target}"]
        assert export.needs == (f"quantize-{name}",)
        assert export.command[1] == f"checkpoints/{name}"
        run = found[f"profile-{name}-{target}-local"]
        assert run.needs == (export.id,)
        assert words(run, "--repetitions") == ["3"]
        assert run.gpu == (target == "ort-cuda")
    assert words(found[f"eval-{name}-ort-local"], "--tasks") == ["piqa,arc_easy"]
    assert found[f"eval-{name}-simulated"].command[1] == f"checkpoints/{name}"
    assert words(found["eval-demo-llama-torch"], "--runtime") == ["torch"]
    assert not found[f"export-{name}-ort"].gpu


def test_more_runs_are_cells_of_their_own_behind_all_first_ones(tmp_path: Path) -> None:
    once = list(cells(tmp_path, f"{SMALL}[profile]\n"))
    found = cells(tmp_path, f"{SMALL}[profile]\nruns = 3\n")
    assert list(found)[: len(once)] == once
    name = "profile-demo-llama-gptq-w8a8-ort-local"
    first, third = found[name], found[f"{name}.3"]
    assert (third.needs, third.of, third.device) == (first.needs, first.of, first.device)
    assert third.outputs == ("runs/demo-llama-gptq-w8a8-ort-local.3.json",)
    assert [word for word in third.command if word not in first.command] == [*third.outputs]
    numbers = [cell.id.rpartition(".")[2] for cell in list(found.values())[len(once) :]]
    assert numbers == ["2"] * 5 + ["3"] * 5
    with pytest.raises(UsageError, match=r"\[profile\] runs: 0 is no number of runs"):
        cells(tmp_path, f"{SMALL}[profile]\nruns = 0\n")


def test_the_baseline_is_there_once_for_every_model_target_and_device(tmp_path: Path) -> None:
    text = """
    [matrix]
    models = ["demo-llama", "demo-qwen2"]
    presets = ["fast", "paper"]
    methods = ["none", "gptq"]
    schemes = ["w8a8", "fp32"]
    devices = ["local", "ssh://me@orin"]
    [quantize]
    lm_head = "int8"
    windows = 16
    [profile]
    """
    found = cells(tmp_path, text)
    baselines = [name for name in found if "fp32" in name]
    assert sorted(baselines) == sorted(
        f"{kind}-{model}-none-fp32{rest}"
        for model in ("demo-llama", "demo-qwen2")
        for kind, rest in (
            ("quantize", ""), ("export", "-ort"),
            ("profile", "-ort-local"), ("profile", "-ort-orin"),
        )
    )  # fmt: skip
    # What rounds something means nothing to it; and plain rounding does not calibrate.
    assert "--lm-head" not in found["quantize-demo-llama-none-fp32"].command
    assert "--windows" not in found["quantize-demo-llama-fast-none-w8a8"].command
    assert words(found["quantize-demo-llama-paper-gptq-w8a8"], "--windows") == ["16"]
    assert words(found["profile-demo-llama-none-fp32-ort-orin"], "--device") == ["ssh://me@orin"]


def test_entries_and_rules_go_over_sections(tmp_path: Path) -> None:
    found = cells(
        tmp_path,
        """
        [matrix]
        models = ["demo-llama", "demo-qwen2"]
        methods = [{ name = "rotated", method = "spinquant", steps = 0 }, "gptq"]
        schemes = ["w8a8", { name = "kv8", scheme = "w4a8", kv = 8, protect = 2 }]
        [quantize]
        length = 64
        [profile]
        repetitions = 10
        [[except]]
        model = "*qwen2"
        scheme = "kv8"
        [[except]]
        kind = "profile"
        method = "rotated"
        [[set]]
        model = "demo-llama"
        method = "gptq"
        quantize = { length = 32, act_order = true, set = { damping = 0.02 } }
        profile = { once = true }
        """,
    )
    rotated = found["quantize-demo-llama-rotated-kv8"]
    assert words(rotated, "--method") == ["spinquant"]
    assert [words(rotated, f"--{name}") for name in ("steps", "kv", "protect", "length")] == [
        ["0"], ["8"], ["2"], ["64"],
    ]  # fmt: skip
    changed = found["quantize-demo-llama-gptq-w8a8"]
    assert words(changed, "--length") == ["32"]
    assert words(changed, "--set") == ["damping=0.02"]
    assert "--act-order" in changed.command
    assert "--once" in found["profile-demo-llama-gptq-w8a8-ort-local"].command
    assert "--once" not in found["profile-demo-qwen2-gptq-w8a8-ort-local"].command
    # What an excepted cell would have served is left out with it.
    assert not any("qwen2" in name and "kv8" in name for name in found)
    assert "export-demo-llama-rotated-w8a8-ort" in found
    assert "profile-demo-llama-rotated-w8a8-ort-local" not in found


def test_paths_are_the_plans_and_folders_can_be_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    text = """
    [folders]
    here = "models"
    [matrix]
    models = [{ model = "{here}/tiny", calib = "text.jsonl" }]
    methods = ["gptq"]
    schemes = ["w8a8"]
    [eval]
    data_dir = "{here}/../questions"
    """
    found = cells(tmp_path, text)
    command = found["quantize-tiny-gptq-w8a8"].command
    assert command[1] == "../models/tiny"
    assert words(found["quantize-tiny-gptq-w8a8"], "--calib") == ["../text.jsonl"]
    assert words(found["eval-tiny-gptq-w8a8-ort-local"], "--data-dir") == ["../questions"]
    elsewhere = tmp_path / "elsewhere" / "tiny"
    elsewhere.mkdir(parents=True)
    moved = cells(tmp_path, text, here=str(elsewhere.parent))
    assert moved["quantize-tiny-gptq-w8a8"].command[1] == "../elsewhere/tiny"
    whole = matrix.cells_of(read(tmp_path, text), None)
    assert str(tmp_path / "models" / "tiny") in whole[0].command


def test_boards_of_an_inventory_and_boards_with_words(tmp_path: Path) -> None:
    (tmp_path / "boards.toml").write_text(
        '[[board]]\nname = "orin"\ndevice = "ssh://me@orin:2222"\npython = "/opt/py"\n'
        '[[board]]\nname = "pi"\ndevice = "ssh://pi@pi"\n'
    )
    text = f"{SMALL}\ndevices = ['boards.toml']\n[profile]\n"
    found = cells(tmp_path, text)
    run = found["profile-demo-llama-gptq-w8a8-ort-orin"]
    assert words(run, "--device") == ["boards/orin.toml"]
    assert (run.device, run.is_remote, run.gpu) == ("orin", True, False)
    assert words(found["profile-demo-llama-gptq-w8a8-ort-pi"], "--device") == ["ssh://pi@pi"]
    (written,) = matrix.boards_of(read(tmp_path, text)).items()
    from slmq_edge.remote import inventory

    (tmp_path / "orin.toml").write_text(written[1])
    (board,) = inventory.read(tmp_path / "orin.toml")
    assert written[0] == "boards/orin.toml"
    assert (board.host, board.port, board.python) == ("me@orin", 2222, "/opt/py")


def test_tensorrt_is_built_here_before_it_is_measured_here(tmp_path: Path) -> None:
    matrix_of = SMALL + "targets = ['trt']\ndevices = ['local', 'ssh://me@orin']\n"
    found = cells(tmp_path, f"{matrix_of}[profile]\n[build]\nworkspace = 256\n")
    name = "demo-llama-gptq-w8a8-trt"
    build = found[f"build-{name}"]
    assert words(build, "--workspace") == ["256"]
    assert build.gpu
    assert found[f"profile-{name}-local"].needs == (f"export-{name}", build.id)
    assert found[f"profile-{name}-orin"].needs == (f"export-{name}",)


def test_a_plan_that_only_looks_makes_no_checkpoints(tmp_path: Path) -> None:
    found = cells(tmp_path, f"{SMALL}[analyze]\nheld_out = 4\nmethods = ['gptq']\n")
    assert list(found) == ["analyze-demo-llama-gptq-w8a8", "analyze-demo-llama-gptq-w4a8"]
    assert words(found["analyze-demo-llama-gptq-w4a8"], "--format") == ["json"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[matrx]\n", ("unknown key 'matrx'", "did you mean matrix?")),
        ("", ("[matrix] is missing",)),
        ("[matrix]\nmodels = []\n", ("models is missing",)),
        ("[matrix]\nmodel = ['demo-llama']\n", ("did you mean models?",)),
        (SMALL.replace("gptq", "gtpq"), ("unknown method 'gtpq'", "did you mean gptq?")),
        (SMALL.replace("w4a8", "w4a9"), ("unknown scheme 'w4a9'", "did you mean")),
        (SMALL + "targets = ['orr']\n", ("unknown target 'orr'", "did you mean ort?")),
        (SMALL + "presets = ['fats']\n", ("unknown preset 'fats'", "did you mean fast?")),
        (SMALL + "devices = ['me@orin']\n", ("did you mean ssh://me@orin?",)),
        (SMALL + "[profile]\nrepetition = 3\n", ("did you mean repetitions?",)),
        (SMALL + "[profile]\nrepetitions = 0\n", ("[profile]", "--repetitions")),
        (SMALL + "[profile]\nrepetitions = 'many'\n", ("[profile]", "--repetitions")),
        (SMALL + "[profile]\noutput = 'x'\n", ("output is not said here",)),
        (SMALL + "[eval]\nof = ['bundles']\n", ("did you mean bundle?",)),
        (SMALL + "[export]\nscheme = 'w8a8'\n", ("scheme is not said here",)),
        (SMALL + "[analyze]\nmethods = ['gpqt']\n", ("did you mean gptq?",)),
        (SMALL + "[[except]]\nmethod = 'qptq'\n", ("no method 'qptq'", "did you mean gptq?")),
        (SMALL + "[[except]]\nmodels = 'x'\n", ("did you mean model?",)),
        (SMALL + "[[except]]\n", ("says of no cells",)),
        (SMALL + "[[except]]\nkind = 'profile'\n", ("no kind 'profile'", "quantize")),
        (SMALL + "[[set]]\nmethod = 'gptq'\n", ("sets nothing",)),
        (SMALL + "[[except]]\nmodel = '*'\n", ("no cells",)),
        (SMALL.replace("'", '"').replace('"gptq"', "3"), ("3 is no method",)),
        (SMALL.replace('"gptq"', '"none"'), ("none is there twice",)),
        (SMALL + "devices = [{ device = 'local', python = 'x' }]\n", ("is of boards",)),
        (SMALL.replace("demo-llama", "{data}/x"), ("unknown folder 'data'", "[folders]")),
        (SMALL + "[eval]\nslices = 'no'\n", ("slices is true or false, not 'no'",)),
        (
            SMALL + "devices = ['ssh://orin', { name = 'fast', device = 'ssh://orin' }]\n",
            ("orin and fast are the same machine",),
        ),
        (
            SMALL.replace('"w4a8"', '{ name = "8-w8a8", scheme = "w4a8" }').replace(
                '"gptq"', '"gptq", { name = "gptq-8", method = "gptq" }'
            ),
            ("two cells", "quantize-demo-llama-gptq-8-w8a8", "method 'gptq' scheme '8-w8a8'"),
        ),
    ],
)
def test_a_mistake_is_one_line_that_says_where(
    tmp_path: Path, text: str, said: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError) as caught:
        cells(tmp_path, text)
    assert "\n" not in str(caught.value)
    for part in said:
        assert part in str(caught.value)
    assert "plan" in str(caught.value)


def test_files_that_are_no_plans(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"did you mean plan\.toml"):
        read(tmp_path, SMALL) and plan.read(tmp_path / "plam.toml", {})
    with pytest.raises(SlmqError, match="is no plan"):
        read(tmp_path, "[matrix\n")
    with pytest.raises(UsageError, match="--folder data"):
        read(tmp_path, SMALL, data="/somewhere")


def test_what_next_tokens_are_held_against_is_a_path_of_the_plan(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    text = f"""{SMALL}
    devices = ["local", "ssh://orin"]
    [eval]
    tasks = ["piqa"]
    against = "AGAINST"
    """
    for said, meant in (("base", "../base"), ("demo-llama", "demo-llama"), ("a/b", "a/b")):
        found = cells(tmp_path, text.replace("AGAINST", said))
        assert words(found["eval-demo-llama-gptq-w8a8-ort-local"], "--against") == [meant]


def test_what_a_cell_would_refuse_when_it_runs_is_refused_before(tmp_path: Path) -> None:
    from slmq_edge.bench.feasible import check

    text = """
    [matrix]
    models = ["demo-llama"]
    methods = ["none"]
    schemes = ["w8a8"]
    devices = ["local", "ssh://orin"]
    [eval]
    tasks = ["builtin_windows"]
    against = "demo-llama"
    [profile]
    protocol = "paper"
    [[set]]
    device = "local"
    scheme = "fp32"
    profile = { prompt_tokens = 64 }
    eval = { tasks = ["builtin_questions"] }
    [[set]]
    device = "local"
    scheme = "w8a8"
    profile = { protocol = "papers" }
    eval = { dtype = "float8" }
    [[set]]
    device = "orin"
    scheme = "w8a8"
    profile = { text = "nowhere.txt" }
    """
    refused = check(matrix.cells_of(read(tmp_path, text), None)).refused
    name = "demo-llama-none"
    assert "reads prompts of 128 tokens" in refused[f"profile-{name}-fp32-ort-local"]
    assert "did you mean paper?" in refused[f"profile-{name}-w8a8-ort-local"]
    assert "nowhere.txt" in refused[f"profile-{name}-w8a8-ort-orin"]
    assert "--against is of texts" in refused[f"eval-{name}-fp32-ort-local"]
    assert "unknown dtype 'float8'" in refused[f"eval-{name}-w8a8-ort-local"]
    assert "leave --device out" in refused[f"eval-{name}-w8a8-ort-orin"]
    assert f"profile-{name}-fp32-ort-orin" not in refused


def test_every_verb_of_a_section_has_options_and_none_that_the_matrix_decides() -> None:
    for verb in (*plan.MAKING, "profile", "eval", "analyze"):
        assert verbs.options(verb), verb
        assert not {"output", "force", "method", "scheme"} & set(verbs.options(verb))
    assert set(verbs.options("export")) == {"runtime", "activation_mode"}
    assert "device" in verbs.options("quantize")
    assert "device" not in verbs.options("profile")


def test_what_a_result_rests_on_is_a_part_of_its_identity(tmp_path: Path) -> None:
    before = identities(tuple(cells(tmp_path, SMALL + "[profile]\n").values()))
    quantized = SMALL + "[profile]\n[[set]]\nmethod = 'gptq'\nquantize = { windows = 4 }\n"
    after = identities(tuple(cells(tmp_path, quantized).values()))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {name for name in before if "gptq" in name}
    assert any(name.startswith("profile") for name in changed)


@pytest.mark.parametrize("out", ["out", "deep/er/out"])
def test_cells_are_the_same_wherever_the_plan_and_its_results_are_moved(
    tmp_path: Path, out: str
) -> None:
    folders = []
    for name in ("one", "two"):
        home = tmp_path / name
        (home / "tiny").mkdir(parents=True)
        (home / "plan.toml").write_text(SMALL.replace("demo-llama", "./tiny"))
        found = plan.read(home / "plan.toml", {})
        folders.append(matrix.cells_of(found, home / out))
    assert folders[0] == folders[1]


TOML = st.recursive(
    st.one_of(st.booleans(), st.integers(), st.floats(), st.text(max_size=6)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                (*plan.TOP, "models", "methods", "schemes", "devices", "name", "model", "method",
                 "kind", "of", "tasks", "repetitions", "set", "demo-llama")
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)  # fmt: skip


@given(document=st.dictionaries(st.sampled_from(plan.TOP), TOML, max_size=5), rest=TOML)
def test_any_document_is_a_plan_or_refused_in_one_line(document: dict[str, Any], rest: Any) -> None:
    good: dict[str, Any] = {
        "matrix": {"models": ["demo-llama"], "methods": ["gptq"], "schemes": ["w8a8"]}
    }
    for tried in (document, {**document, **good}, {**good, "set": rest, "eval": rest}):
        said = ""
        try:
            found = plan.from_document(tried, "", Path("plan.toml"), {})
            assert matrix.cells_of(found, Path("out"))
        except SlmqError as error:
            said = str(error)
        assert "\n" not in said


def test_the_example_is_a_plan_that_can_be_carried_out() -> None:
    from slmq_edge.bench.feasible import check

    path = Path(__file__).resolve().parents[1] / "docs" / "example" / "plan.toml"
    found = plan.read(path, {"shared": str(shared("data").parent)})
    checked = check(matrix.cells_of(found, None))
    assert not checked.refused
    assert sum(name.startswith("export") for name in checked.made) == 3 * (5 * 3 + 1)
