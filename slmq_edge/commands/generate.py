"""slmq-edge generate: what does a bundle say? Text as it comes, and how fast it came."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from slmq_edge.runner.runtimes import Place, Session

INTERRUPTED = 130  # what a shell reports for Ctrl-C: 128 + SIGINT


def generate(
    bundle: Annotated[Path, typer.Argument(help="Folder written by slmq-edge export.")],
    prompt: Annotated[str, typer.Option(help="What the model reads; - takes it from stdin.")],
    system: Annotated[
        str | None, typer.Option(help="The system's turn, where there is a chat template.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="No chat template: the prompt is a text to continue.")
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option("-n", "--max-new-tokens", min=1, help="Cut to what the context holds.")
    ] = 128,
    temperature: Annotated[
        float | None,
        typer.Option(help="Sample, 0 to 10; default: 0, the most likely token each time."),
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample from the fewest tokens of this probability.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Sample from this many of the most likely tokens.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the sampling; default: drawn, and printed at the end.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Default: one for every core we may use.")
    ] = None,
    engines: Annotated[
        Path | None,
        typer.Option(help="Of slmq-edge build, for TensorRT. Default: engines/ in the bundle."),
    ] = None,
) -> None:
    """Generate text with a bundle: the answer on stdout as it comes, its speed on stderr.

    Where the tokenizer has a chat template, the prompt is a user's turn; elsewhere, or with --raw,
    it is a text to continue. The answer ends at a stop token or after --max-new-tokens; Ctrl-C
    ends it too (exit code 130). Speeds are of this one answer: slmq-edge profile measures.

    \b
    Examples:
      slmq-edge generate smollm-w8a8 --prompt "The capital of France is" --raw
      slmq-edge generate qwen-w8a8 --prompt "Why is the sky blue?" --system "Be brief."
      slmq-edge generate qwen-w8a8 --prompt - --temperature 0.7 --top-p 0.9 --seed 1 < letter.txt
    """
    from slmq_edge import generation
    from slmq_edge.commands.progress import bar
    from slmq_edge.files import existing_bundle
    from slmq_edge.generation import follow, stream
    from slmq_edge.prompts import bundle_tokenizer, encode, read_prompt, room, stop_tokens
    from slmq_edge.reports.generate import line
    from slmq_edge.runner import environment, manifest, runtimes
    from slmq_edge.runner.runtimes import Place

    how = generation.sampling(temperature, top_p, top_k, seed)
    document = existing_bundle(bundle)
    place = Place(bundle, document, threads or environment.cores(), engines)
    runtimes.of(place).check(place)
    text = read_prompt(prompt, sys.stdin.buffer)
    with bar("verifying files") as progress:
        manifest.verify(bundle, document.get("files", {}))
        progress(0.2, "reading the tokenizer")
        tokenizer = bundle_tokenizer(bundle, document)
        tokens = encode(tokenizer, text, system, raw)
        stops = stop_tokens(bundle, tokenizer)
        room(tokens, document)  # refused before anything is loaded
        progress(0.6, "loading")
        session, warning = _open(place)
        most = min(max_new_tokens, room(tokens, document, session.most_positions))
    if warning:
        _note(warning)
    if most < max_new_tokens:
        _note(
            f"--max-new-tokens {max_new_tokens} is cut to {most}: the context holds "
            f"{most + len(tokens)} tokens, {len(tokens)} of the prompt among them"
        )
    printer = _Printer(tokenizer, tokens.tolist())
    answer = stream(session, tokens, most, generation.chooser(how))
    made = follow(answer, len(tokens), stops, printer.show)
    printer.finish()
    _note(line(made, how))
    if made.reason == generation.INTERRUPTED:
        raise typer.Exit(INTERRUPTED)


def _open(place: Place) -> tuple[Session, str]:
    """Load the graph of a verified bundle, and probe the integers; return a warning too, or "".

    Golden prompts are not run: this is no measurement, and a person sees the text. For the same
    reason integers that saturate are a warning here, where profile refuses.
    """
    from slmq_edge.runner import probe, runtimes

    runtime = runtimes.of(place)
    exactness = runtime.probe(place)
    session = runtime.prepare(place, probe.graph_to_run(exactness))()
    if exactness is None or exactness.exact:
        return session, ""
    return session, (
        f"warning: {exactness.operator} is not exact on this CPU (integers are off by up to "
        f"{exactness.largest_error}): the text is not what it is elsewhere"
    )


def _note(text: str) -> None:
    typer.echo(text, err=True)


class _Printer:
    """Text to stdout, every piece at once, with a newline behind the last."""

    def __init__(self, tokenizer: Any, prompt: list[int]) -> None:
        from slmq_edge.detokenizer import Detokenizer, decoder_of

        self._pieces = Detokenizer(decoder_of(tokenizer), prompt)
        reconfigure = getattr(sys.stdout, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")  # a terminal without UTF-8 shows ? and goes on

    def show(self, token: int) -> None:
        typer.echo(self._pieces.add(token), nl=False)

    def finish(self) -> None:
        typer.echo(self._pieces.finish())
