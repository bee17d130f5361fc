"""What was written as ONNX, run by the onnxruntime that is installed here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slmq_edge.checkpoint import Checkpoint
from slmq_edge.errors import MissingExtra, SlmqError
from slmq_edge.exporters.bundle import SESSION_OPTIONS, Written, guesses
from slmq_edge.golden import Draft, Golden
from slmq_edge.runner import asked, memory, ort, probe
from slmq_edge.runner import golden as check


def draft(checkpoint: Checkpoint, folder: Path, written: Written) -> Draft | None:
    """Greedy guesses by the graph itself; ``None`` where no onnxruntime is installed.

    Of graph and model, one's mapped file is resident at a time.
    """
    graph = folder / written.graph
    try:
        # Weights are read from the file where they lie: slower, and no copy beside the model.
        settings = {**SESSION_OPTIONS, "session.disable_prepacking": "1"}
        session = ort.Session(graph, threads=1, settings=settings)
    except MissingExtra:
        return None
    of_graph = memory.of_folder(graph.parent)
    of_model = memory.of_addresses(tensor.data_ptr() for tensor in checkpoint.tensors.values())
    guessed = guesses(session)

    def guess(tokens: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        if count == 0:
            return tokens[:0]
        memory.let_go(of_model)
        found = guessed(tokens, count)
        memory.let_go(of_graph)
        return found

    return guess


def verify(folder: Path, written: Written, golden: Golden) -> dict[str, Any] | None:
    """Run the golden check of every graph that this CPU multiplies exactly, whatever its target.

    ``None``: there is none, or no onnxruntime is installed.

    Raises:
        SlmqError: a graph fails it.
    """
    try:
        runtime = ort.load_onnxruntime()
    except MissingExtra:
        return None
    memory.return_memory()  # what the simulation took
    graphs = [
        graph
        for graph, integers in written.graphs.items()
        if integers is None or probe.largest_error(folder / integers, 1, SESSION_OPTIONS) == 0
    ]
    if not graphs:
        return None
    limits = check.limits({"golden": golden.limits})
    try:
        reports = [
            check.check(ort.Session(folder / one, 1, SESSION_OPTIONS), golden.arrays, limits)
            for one in graphs
        ]
    except SlmqError as error:
        raise SlmqError(
            f"the exported graph does not compute what its simulation computes: {error} "
            "Nothing was written; this is a bug of ours or of onnxruntime "
            f"{runtime.__version__}, please report it."
        ) from error
    where = {"onnxruntime": runtime.__version__, "provider": asked.ON_CPU.name, "graphs": graphs}
    return {**where, **reports[0]._asdict()}
