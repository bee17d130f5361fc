"""Text from a bundle: the session's own greedy tokens, where they end, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from slmq_edge import builtin, generation, models, prompts
from slmq_edge.checkpoint import extras_of
from slmq_edge.cli import app
from slmq_edge.detokenizer import decoder_of
from slmq_edge.errors import Damaged, NotFound, SlmqError, UsageError
from slmq_edge.export import export
from slmq_edge.generation import Generated, Sampling, Token
from slmq_edge.reports.generate import line
from slmq_edge.runner import golden, manifest, ort, probe
from slmq_edge.scheme import scheme
from tests import toy_graph
from tests.decoders import DECODERS, rounded
from tests.shared import shared
from tests.test_cli import assert_one_line, slmq

PROMPT = "The ant is smaller than the elephant. The"
TEMPLATE = (
    "{% for turn in messages %}{{ turn.content }} {% endfor %}"
    "{% if add_generation_prompt %}The house of{% endif %}"
)


def made(folder: Path, changes: Mapping[str, bytes], precision: str = "w8a8") -> Path:
    """A bundle of demo-llama, with other files or other content of its own beside the graph."""
    checkpoint = rounded(DECODERS["demo-llama"](), scheme(precision))
    checkpoint.extras.update(extras_of(builtin.folder("demo-llama")) | dict(changes))
    export(checkpoint, folder)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("generate") / "bundle", {})


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "bundle"
    return made(folder, {"chat_template.jinja": TEMPLATE.encode()})


def opened(bundle: Path) -> ort.Session:
    return ort.open_bundle(bundle, manifest.read_bundle(bundle), threads=1)


def run(bundle: Path, *options: object, text: str | None = None, prompt: str = PROMPT) -> Any:
    arguments = ["generate", str(bundle), "--prompt", prompt, "--threads", "1"]
    return CliRunner().invoke(app, [*arguments, *map(str, options)], input=text)


def ids(bundle: Path, text: str) -> list[int]:
    found: list[int] = models.read_tokenizer(bundle)(text).input_ids
    return found


def reference(bundle: Path, tokens: Sequence[int], count: int) -> list[int]:
    """Greedy decoding the slow way: the whole text anew for every token, no cache, no stop."""
    session, text = opened(bundle), list(tokens)
    for _ in range(count):
        logits, _ = session.prefill(np.array([text]), 1)
        text.append(int(logits[0, -1].argmax()))
    return text[len(tokens) :]


def continuation(bundle: Path, prompt: Sequence[int], new: Sequence[int]) -> str:
    decode = decoder_of(models.read_tokenizer(bundle))
    return decode([*prompt, *new])[len(decode(prompt)) :]


# --- what is said


def test_the_text_is_the_sessions_greedy_text(bundle: Path) -> None:
    done = run(bundle, "-n", 40)
    assert done.exit_code == 0, done.output
    tokens = ids(bundle, PROMPT)
    assert done.stdout == continuation(bundle, tokens, reference(bundle, tokens, 40)) + "\n"
    assert done.stdout[0] == " "


def test_the_speed_is_one_line_and_not_on_stdout(bundle: Path) -> None:
    done = run(bundle, "-n", 8)
    assert "TTFT" not in done.stdout
    (said,) = [text for text in done.stderr.splitlines() if text.strip()]
    number = r"\d+(\.\d+)?"
    assert re.fullmatch(
        rf"prompt {len(ids(bundle, PROMPT))} tokens, TTFT {number} [mu]?s, prefill {number} tok/s, "
        rf"8 new tokens, decode {number} tok/s, stopped: length",
        said,
    )


def test_it_is_the_simulations_greedy_text(tmp_path: Path) -> None:
    """Golden prompts hold its continuation; in fp32 its choices are nearly all clear."""
    bundle = made(tmp_path / "bundle", {}, "fp32")
    document = manifest.read_bundle(bundle)
    arrays = golden.load(golden.golden_file(bundle, document))
    noise, session, compared = golden.limits(document).logit_noise, opened(bundle), 0
    for prompt, greedy, margins in zip(
        arrays["tokens"], arrays["greedy"], arrays["greedy_margins"], strict=True
    ):
        clear = int(np.append(margins > 2 * noise, False).argmin())
        if clear:
            chosen = generation.stream(session, prompt, clear, generation.chooser(Sampling()))
            assert [token.id for token in chosen] == greedy[:clear].tolist()
        compared += clear
    assert compared >= 32


def test_stdin_is_read_where_the_prompt_is_a_dash(bundle: Path) -> None:
    told = run(bundle, "-n", 5).stdout
    assert run(bundle, "-n", 5, prompt="-", text=PROMPT + "\n").stdout == told
    assert run(bundle, "-n", 5, prompt="-", text=PROMPT + "\n\n").stdout != told  # only the last


def test_a_stop_token_stops_and_is_not_shown(bundle: Path, tmp_path: Path) -> None:
    """Either config is believed beside the other, which names another token."""
    tokens = ids(bundle, PROMPT)
    new = reference(bundle, tokens, 20)
    end = next(i for i in range(5, 20) if new[i] not in new[:i])
    config = json.loads((bundle / "config.json").read_text())
    for number, (name, content) in enumerate(
        (("generation_config.json", {"eos_token_id": [1, new[end]]}),
         ("config.json", config | {"eos_token_id": new[end]}))
    ):  # fmt: skip
        folder = made(tmp_path / str(number), {name: json.dumps(content).encode()})
        done = run(folder, "-n", 20)
        assert done.stdout == continuation(bundle, tokens, new[:end]) + "\n"
        assert f"{end} new tokens" in done.stderr
        assert "stopped: stop token" in done.stderr


def test_all_stop_tokens_are_found(tmp_path: Path) -> None:
    class Tokenizer:
        eos_token_id = 7

    (tmp_path / "config.json").write_text('{"eos_token_id": 3}')
    assert prompts.stop_tokens(tmp_path, Tokenizer()) == {3, 7}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [4, 5]}')
    assert prompts.stop_tokens(tmp_path, Tokenizer()) == {3, 4, 5, 7}
    Tokenizer.eos_token_id = None  # type: ignore[assignment]
    assert prompts.stop_tokens(tmp_path, Tokenizer()) == {3, 4, 5}
    for wrong in ('{"eos_token_id": "end"}', '{"eos_token_id": [true]}', "[]", "{"):
        (tmp_path / "generation_config.json").write_text(wrong)
        with pytest.raises(Damaged, match=r"generation_config\.json"):
            prompts.stop_tokens(tmp_path, Tokenizer())


def test_the_answer_is_cut_to_the_context(bundle: Path) -> None:
    done = run(bundle, "-n", 600)
    room = 512 - len(ids(bundle, PROMPT))
    assert f"--max-new-tokens 600 is cut to {room}: the context holds 512" in done.stderr
    assert re.search(f"{room} new tokens.*stopped: (length|stop token)", done.stderr)
    long = run(bundle, prompt="the " * 600)
    assert isinstance(long.exception, UsageError)
    assert "the context holds 512" in str(long.exception)


# --- sampling, on the verb (by itself: test_generation)


def test_a_seed_repeats_and_another_does_not(bundle: Path) -> None:
    hot = ("-n", 30, "--temperature", 1.5)
    first = run(bundle, *hot, "--seed", 7)
    assert "seed 7, " in first.stderr
    assert run(bundle, *hot, "--seed", 7).stdout == first.stdout
    assert run(bundle, *hot, "--seed", 8).stdout != first.stdout
    drawn = run(bundle, *hot)
    (seed,) = re.findall(r"seed (\d+)", drawn.stderr)
    assert run(bundle, *hot, "--seed", seed).stdout == drawn.stdout


def test_the_likeliest_of_one_is_greedy(bundle: Path) -> None:
    greedy = run(bundle, "-n", 20).stdout
    for options in (("--top-k", 1), ("--top-p", 1e-9)):
        assert run(bundle, "-n", 20, "--temperature", 2, *options).stdout == greedy
    assert run(bundle, "-n", 20, "--temperature", 0).stdout == greedy


# --- conversations


def test_a_chat_template_is_used_where_there_is_one(bundle: Path, chat: Path) -> None:
    told = run(chat, "-n", 12, prompt="Olga left.", text=None)
    assert told.exit_code == 0, told.output
    tokens = ids(bundle, "Olga left. The house of")
    assert told.stdout == continuation(bundle, tokens, reference(bundle, tokens, 12)) + "\n"
    system = run(chat, "-n", 12, "--system", "Felix left.", prompt="Olga left.")
    tokens = ids(bundle, "Felix left. Olga left. The house of")
    assert system.stdout == continuation(bundle, tokens, reference(bundle, tokens, 12)) + "\n"
    assert run(chat, "-n", 12, "--raw").stdout == run(bundle, "-n", 12).stdout


def test_qwens_own_template() -> None:
    tokenizer = models.read_tokenizer(shared("tokenizers/qwen2.5"))
    found = prompts.encode(tokenizer, "Why?", "Be brief.", raw=False)
    assert found.dtype == np.int64
    assert tokenizer.decode(found) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert found[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert prompts.encode(tokenizer, "Why?", None, raw=True).tolist() == tokenizer.encode("Why?")


def test_a_text_to_continue_keeps_the_tokenizers_special_tokens() -> None:
    tokenizer = models.read_tokenizer(shared("models/stories260K"))
    assert prompts.encode(tokenizer, "Once", None, raw=True)[0] == tokenizer.bos_token_id
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0].content }}"
    found = prompts.encode(tokenizer, "Once", None, raw=False).tolist()
    assert found.count(tokenizer.bos_token_id) == 1  # the template's, not a second one


# --- interrupted


def test_ctrl_c_ends_with_what_was_there(bundle: Path) -> None:
    """In a real process: the signal comes during the sixth step."""
    program = (
        "import os, signal, sys\n"
        "from slmq_edge.cli import main\n"
        "from slmq_edge.runner.ort import Session\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # the background has none
        "step, left = Session.step, [6]\n"
        "def interrupted(*arguments):\n"
        "    left[0] -= 1\n"
        "    if left[0] == 0:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return step(*arguments)\n"
        "Session.step = interrupted\n"
        f"sys.argv = ['slmq-edge', 'generate', {str(bundle)!r}, '--prompt', {PROMPT!r}]\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    tokens = ids(bundle, PROMPT)
    assert done.stdout == continuation(bundle, tokens, reference(bundle, tokens, 6)) + "\n"
    assert "6 new tokens" in done.stderr
    assert done.stderr.endswith("stopped: interrupted\n")
    assert "Traceback" not in done.stderr


# --- refused, or warned of


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--temperature", "11"), 2, "--temperature 11 is out of its range: 0 to 10"),
        (("--temperature", "nan"), 2, "--temperature nan"),
        (("--temperature", "1", "--top-p", "0"), 2, "--top-p 0 is out"),
        (("--temperature", "1", "--top-p", "1.5"), 2, "--top-p 1.5 is out"),
        (("--temperature", "1", "--top-k", "0"), 2, "--top-k 0 is out"),
        (("--temperature", "1", "--seed", "-1"), 2, "--seed -1 is out"),
        (("--top-p", "0.9", "--seed", "1"), 2, "--top-p, --seed without a --temperature"),
        (("--system", "Be brief."), 2, "--system needs a chat template: this tokenizer has none"),
        (("--system", "Be brief.", "--raw"), 2, "--raw leaves it out"),
        (("--prompt", ""), 2, "the prompt is empty"),
        (("--prompt", "\udcff"), 2, "the prompt is not UTF-8"),
    ],
)
def test_a_mistake_is_one_line(bundle: Path, options: tuple[str, ...], code: int, words: str
) -> None:  # fmt: skip
    done = run(bundle, *options)
    assert isinstance(done.exception, SlmqError)
    assert done.exception.exit_code == code
    assert words in str(done.exception)
    assert done.stdout == ""


def test_mistakes_as_a_user_sees_them(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    assert_one_line(slmq("generate", "bundel", "--prompt", "x", cwd=tmp_path), 1, "mean bundle?")
    assert_one_line(slmq("generate", tmp_path, "--prompt", "x", cwd=tmp_path), 1, "not a bundle")
    (tmp_path / "bundle" / "tokenizer.json").write_text("{}")
    done = slmq("generate", "bundle", "--prompt", "x", cwd=tmp_path)
    assert_one_line(done, 1, "tokenizer.json", "truncated")


def test_a_bundle_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = toy_graph.write_bundle(tmp_path / "bundle")
    done = run(folder)
    assert isinstance(done.exception, NotFound)
    assert "carries no tokenizer" in str(done.exception)


def test_a_file_that_nobody_verified_is_not_read(bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    (folder / "chat_template.jinja").write_text("{{ 1 / 0 }}")
    done = run(folder)
    assert isinstance(done.exception, Damaged)
    assert "does not list chat_template.jinja" in str(done.exception)


def test_another_models_tokenizer_is_refused(bundle: Path) -> None:
    document = manifest.read_bundle(bundle)
    assert prompts.room(np.array([1023]), document) == 511
    with pytest.raises(SlmqError, match=r"token 1024 .* vocabulary has 1024"):
        prompts.room(np.array([5, 1024]), document)
    with pytest.raises(Damaged, match="no vocab"):
        prompts.room(np.array([5]), document | {"anatomy": None})


def test_a_template_that_refuses_is_one_line() -> None:
    tokenizer = models.read_tokenizer(builtin.folder("demo-llama"))
    tokenizer.chat_template = "{{ raise_exception('no system,\n please') }}"
    with pytest.raises(UsageError, match="refuses this conversation: no system, please"):
        prompts.encode(tokenizer, "x", "y", raw=False)


def test_integers_that_saturate_are_a_warning(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = probe.ProbeReport("MatMulInteger", False, 4321)
    monkeypatch.setattr(probe, "run", lambda *_: report)
    done = run(bundle, "-n", 3)
    assert done.exit_code == 0
    assert "warning: MatMulInteger is not exact on this CPU" in done.stderr
    assert "4321" in done.stderr


def test_a_terminal_without_utf8_does_not_end_it() -> None:
    program = (
        "import sys\n"
        "from slmq_edge.commands.generate import _Printer\n"
        "class Tokenizer:\n"
        "    def decode(self, tokens, **_):\n"
        "        return '東' * len(tokens)\n"
        "printer = _Printer(Tokenizer(), [])\n"
        "printer.show(1)\n"
        "printer.finish()\n"
    )
    variables = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=variables)
    assert done.stdout == b"?\n", done.stderr


def test_a_template_in_a_file_of_its_own_travels_along(chat: Path) -> None:
    assert "chat_template.jinja" in manifest.read_bundle(chat)["files"]
    assert models.read_tokenizer(chat).chat_template == TEMPLATE


# --- the line


def test_the_line_of_a_timed_answer() -> None:
    tokens = (Token(5, 0.5), Token(6, 0.25), Token(1, 0.25))
    assert line(Generated(10, tokens, generation.STOP), Sampling(0.7, seed=3)) == (
        "prompt 10 tokens, TTFT 500 ms, prefill 20.0 tok/s, 2 new tokens, decode 4.00 tok/s, "
        "seed 3, stopped: stop token"
    )
    assert line(Generated(10, (), generation.INTERRUPTED), Sampling()) == (
        "prompt 10 tokens, TTFT n/a, prefill n/a, 0 new tokens, decode n/a, stopped: interrupted"
    )
