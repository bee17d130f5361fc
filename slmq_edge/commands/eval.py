"""slmq-edge eval: how many questions does a model answer, on any runtime, on any machine?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from slmq_edge.commands.formats import Force


def evaluate(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT", help="A bundle, a checkpoint, or a model: built-in, folder or hub id."
        ),
    ],
    names: Annotated[
        str,
        typer.Option(
            "-t", "--tasks", metavar="LIST", help="Tasks and suites, with commas between."
        ),
    ] = "slmquant",
    runtime: Annotated[
        str | None,
        typer.Option(help="torch, simulated, ort or trt. Default: the one for what it is."),
    ] = None,
    device: Annotated[
        str,
        typer.Option("-d", "--device", metavar="WHERE", help="local or ssh://user@host:port."),
    ] = "local",
    data_dir: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Questions in local files. Default: from the hub."),
    ] = None,
    slices: Annotated[
        bool,
        typer.Option("--slices", help="Of --data-dir, its small fixed subsets (*.sliceN.jsonl)."),
    ] = False,
    text: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Of text_windows: plain text, or JSONL with 'text'."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="Only the first so many of each task, of MMLU of each of 57 subjects."
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="BASE",
            help="A bundle, a checkpoint or a model: how far next tokens lie from its.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Default: NAME-RUNTIME-eval.json in this folder."),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Of a model: float32, float16 or bfloat16.")
    ] = "float32",
    torch_device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="With torch or simulated: cpu, cuda or cuda:N. Default: cpu; of a bundle for "
            "torch a GPU where there is one.",
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Commit, branch or tag of a model from the hub.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Default: one for every core we may use."),
    ] = None,
    engines: Annotated[
        Path | None,
        typer.Option(help="Of slmq-edge build, for TensorRT. Default: engines/ in the bundle."),
    ] = None,
    allow_inexact: Annotated[
        bool,
        typer.Option(
            "--allow-inexact", help="Score even if this CPU's integer kernel is not exact."
        ),
    ] = False,
    deadline: Annotated[
        float, typer.Option(min=0.01, help="Hours after which a board ends the job by itself.")
    ] = 6.0,
    reconnect_limit: Annotated[
        float, typer.Option(min=0, help="Minutes for which a lost link is put up with.")
    ] = 15.0,
    format: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="NAME", help="terminal, md, csv or json. Default: terminal."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print eval.json, no table.")] = False,
    force: Force = False,
) -> None:
    """Score questions and text with lm-eval: accuracies and perplexities.

    The tasks are lm-eval's own, zero-shot: mmlu (cloze form), arc_easy, arc_challenge, piqa,
    hellaswag, wikitext2_documents (lm-eval's word perplexity), and wikitext2_windows (the papers'
    perplexity over windows of 2048 tokens). wikitext2 is both, slmquant all of them. With
    --data-dir the same tasks read FOLDER/arc_easy/test.jsonl and so on, and nothing is fetched.
    builtin asks what the built-in models were taught, and needs no network: builtin_questions
    (chance is 25 %) and builtin_windows, a perplexity over windows of 512 tokens. text_windows is
    the perplexity of a text of your own (--text), over windows of 2048 tokens; wherever a model's
    context is shorter, so are the windows, and the metric's name says it.

    torch scores a model as transformers computes it, and of a checkpoint the bundle for torch,
    which is made beside the output; simulated scores a checkpoint with its rounding, ort, trt and
    torch what was exported: a bundle passes the checks of a measurement first. lm-eval stays here;
    to a device go token ids, and log-probabilities come back.

    Every question's log-probabilities are kept in eval.json, for slmq-edge gap. After Ctrl-C or a
    crash the same command goes on.

    --against BASE also compares distributions of next tokens, over all the vocabulary, at every
    position of the texts that are cut into windows: KL(BASE || WHAT), and how often the most
    likely token differs. Both run here, one after the other; slmq-edge gap has the result in its
    table. An interruption of this part loses it, and not the scores.

    \b
    Examples:
      slmq-edge eval demo-llama --tasks builtin
      slmq-edge eval HuggingFaceTB/SmolLM-135M
      slmq-edge eval smollm-w8a8 --tasks piqa,wikitext2 --limit 200
      slmq-edge eval my-checkpoint --runtime torch --torch-device cuda
      slmq-edge eval smollm-w8a8 --tasks text_windows --text manuals.txt
      slmq-edge eval smollm-w8a8 --data-dir questions --device ssh://me@orin.local
      slmq-edge eval smollm-w8a8 --tasks wikitext2_windows --against HuggingFaceTB/SmolLM-135M
      slmq-edge eval demo-llama --data-dir questions --slices --json | jq .tasks[].metrics
    """
    from slmq_edge.checkpoint import is_checkpoint
    from slmq_edge.commands.formats import chosen_format
    from slmq_edge.commands.progress import bar
    from slmq_edge.errors import UsageError
    from slmq_edge.files import check_output
    from slmq_edge.remote.inventory import targets
    from slmq_edge.remote.target import LOCAL
    from slmq_edge.reports.eval import WRITERS
    from slmq_edge.tracks import exported
    from slmq_edge.tracks.accuracy import own, scorers, tasks
    from slmq_edge.tracks.accuracy.evaluation import Asked
    from slmq_edge.tracks.accuracy.questions import Folder
    from slmq_edge.tracks.accuracy.running import Where, evaluate_on

    chosen = tasks.named(names)
    write = WRITERS[chosen_format(format, as_json, WRITERS)]
    if slices and data_dir is None:
        raise UsageError("--slices is of local files: give their folder by --data-dir")
    if (text is not None) != (own.TEXT in chosen):
        raise UsageError(f"--text and --tasks {own.TEXT} go together: give both, or neither")
    where = targets(device)
    if len(where) > 1:
        raise UsageError(f"{device} names {len(where)} boards: eval scores on one")
    remote = where[0].transport != LOCAL
    if engines is not None and not engines.is_absolute() and remote:
        raise UsageError(f"--engines {engines}: on another machine, the whole path there is needed")
    if against is not None:
        check_against(chosen, remote)
    if runtime is not None:
        scorers.check_runtime(what, runtime)
    of_checkpoint = runtime == scorers.TORCH and is_checkpoint(Path(what))
    if of_checkpoint:
        exported.check(Path(what), runtime, remote, torch_device)
    kind = runtime or scorers.runtime_of(what)
    path = output or Path(f"{Path(what).resolve().name}-{kind}-eval.json")
    check_output(path, force)
    tasks.require_lm_eval()
    data = None if data_dir is None else Folder(data_dir, slices)
    if data is not None:
        tasks.files(chosen, data)
    if text is not None:
        own.of_file(text)

    if of_checkpoint:
        with bar("reading the checkpoint") as progress:
            what = str(exported.bundle_of(Path(what), path.parent, progress, _say))
    place = Where(where[0], reconnect_limit * 60, deadline * 3600)
    scored = scorers.Asked(
        what,
        dtype=dtype,
        torch_device=torch_device,
        revision=revision,
        threads=threads,
        engines=engines,
        allow_inexact=allow_inexact,
    )
    asked = Asked(chosen, data, limit, text)
    with bar("loading") as progress:
        found = evaluate_on(
            place, scored, runtime, asked, path, progress, _say, against=against, force=force
        )
    typer.echo(write(found), nl=False)
    typer.echo(f"written: {path}", err=True)


def check_against(chosen: Sequence[str], remote: bool) -> None:
    """Refuse to compare next tokens of a board, or of no text.

    Raises:
        UsageError: says what to leave out, or to add.
    """
    from slmq_edge.errors import UsageError
    from slmq_edge.tracks.accuracy import tasks

    if remote:
        raise UsageError("--against compares logits, which stay here: leave --device out")
    if not set(chosen) & set(tasks.TEXTS):
        raise UsageError(f"--against is of texts: add one of {', '.join(tasks.TEXTS)} to --tasks")


def _say(text: str) -> None:
    from slmq_edge.commands.making import note

    note(text)
