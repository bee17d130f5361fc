"""Scorers in this process: transformers' own model, and the simulation of a checkpoint.

torch's products of floats add up in another order in a batch, so that transformers' model reads one
sequence at a time; products of integers do not, and a simulation may be tried in company. In a
quantized model, one float that is rounded otherwise may flip an integer, and move a logit by as
much as a better method gains.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as List
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slmq_edge import checkpoint as checkpoints
from slmq_edge import models
from slmq_edge.anatomy import Anatomy
from slmq_edge.errors import MissingExtra, UsageError, unknown
from slmq_edge.files import CHECKPOINT_FILE
from slmq_edge.runner import environment, journal, manifest, requests, scoring
from slmq_edge.tracks.accuracy.sequences import Kept, Order, Progress, Score, Sequence

if TYPE_CHECKING:
    from slmq_edge.simulation import Simulation

DTYPES = ("float32", "float16", "bfloat16")
TOGETHER = 512  # tokens: integer weights become floats anew for every batch
ROWS = 64  # positions whose logits a simulation computes at a time
OF_MACHINE = ("machine", "cpu_model", "cpu_flags")


@dataclass(frozen=True)
class Model:
    """What scores: its name, its limits, its logits.

    together: tokens that may run as a batch, if that changes no bit; 0: each sequence runs alone.
    """

    identity: Mapping[str, Any]
    shape: Anatomy
    logits: scoring.Logits
    together: int = 0


class InProcess:
    """A ``Scorer`` of a model that is in memory. folder: where it keeps what it has scored."""

    def __init__(self, model: Model, folder: Path | None) -> None:
        self._model, self._kept = model, Kept(folder)
        self.tokens_before = 0

    @property
    def model(self) -> Model:
        """What scores."""
        return self._model

    @property
    def identity(self) -> Mapping[str, Any]:
        return self._model.identity

    @property
    def context_length(self) -> int:
        return self._model.shape.max_positions

    def score(self, sequences: List[Sequence], progress: Progress) -> list[Score]:
        """See ``Scorer``."""
        order = Order(sequences)
        requests.check(order.requests, self.context_length, self._model.shape.vocab)

        def told(line: str) -> None:
            event = json.loads(line)
            progress(order.read(event["first"] + journal.taken(event)), order.tokens)

        with (
            self._kept.journal(self.identity, order) as path,
            journal.Journal(path, told) as log,
        ):
            done = len(scoring.scores(journal.read(path), order.sequences)[0])
            self.tokens_before = order.read(done)
            progress(self.tokens_before, order.tokens)
            together = self._together(order, done)
            scoring.take(order.requests, done, self._model.logits, log, together)
            return order.restored(*scoring.scores(journal.read(path), order.sequences))

    def _together(self, order: Order, done: int) -> int:
        """Tokens that run as a batch; tried on the sequences' own."""
        model, left = self._model, order.requests.left(done)
        if not model.together:
            return 0
        tokens = order.requests.tokens.astype("int64")
        return scoring.company(model.logits, tokens, self.context_length, left, model.together)

    def forget(self) -> None:
        """See ``Scorer``."""
        self._kept.forget()


def of_transformers(
    model: str, dtype: str = "float32", device: str = "cpu", revision: str | None = None
) -> Model:
    """A model in full precision, as transformers computes it.

    Args:
        model: a built-in name, a folder or a hub id.
        dtype: of weights and activations, one of ``DTYPES``.
        device: of torch.
        revision: of a hub model.

    Raises:
        NotFound, Damaged, Unsupported: see ``models``. UsageError: a model that is quantized
            already, an unknown dtype, a device that torch does not have here.
    """
    if dtype not in DTYPES:
        raise UsageError(unknown("dtype", dtype, DTYPES))
    source = models.find(model, revision)
    shape = models.read_anatomy(source.folder)
    files = [source.folder / "config.json", *models.weight_files(source.folder)]
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingExtra(str(error.name), "quantize") from error
    if not _has(device):
        raise UsageError(f"torch has no device {device} here")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        source.folder, dtype=getattr(torch, dtype), trust_remote_code=False, local_files_only=True
    )
    loaded = loaded.to(device).eval()

    def logits(tokens: Any, keep: int) -> Iterator[Any]:
        with torch.inference_mode():
            read = torch.from_numpy(tokens).to(device)
            yield loaded(read, use_cache=False, logits_to_keep=keep).logits.float().cpu().numpy()

    identity = {
        "runtime": "torch",
        "model": source.as_json(),
        "files": {file.name: manifest.sha256(file) for file in files},
        "dtype": dtype,
        "device": device,
        **_here(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    return Model(identity, shape, logits)


def of_checkpoint(folder: Path, device: str = "cpu") -> Model:
    """A quantized model, as its simulation computes it on a device of torch.

    Raises:
        UsageError: no checkpoint, a device that torch does not have here. Damaged: see
            ``checkpoint.load``.
    """
    if not checkpoints.is_checkpoint(folder):
        raise UsageError(
            f"{folder} is no checkpoint, and a simulation is of one: slmq-edge quantize makes it"
        )
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("torch", "quantize") from error
    from slmq_edge.simulation import Simulation
    from slmq_edge.torch_device import checked

    checked(device, "--torch-device")
    found = checkpoints.load(folder)
    identity = {
        "runtime": "simulated",
        "model": found.source,
        "method": found.method,
        "scheme": found.scheme.name,
        "checkpoint_sha256": manifest.sha256(folder / CHECKPOINT_FILE),
        **({} if device == "cpu" else {"device": device}),
        **_here(),
        "versions": {"torch": torch.__version__},
    }
    # Several threads share a batch out as they please: sums then depend on the company.
    together = TOGETHER if device == "cpu" and torch.get_num_threads() == 1 else 0
    there = Simulation(found, device=device)
    return Model(identity, found.anatomy, simulated(there), together)


def simulated(simulation: Simulation) -> scoring.Logits:
    """The logits of a simulation, computed for some positions at a time."""

    def logits(tokens: Any, keep: int) -> Iterator[Any]:
        import torch

        hidden = simulation.hidden(torch.from_numpy(tokens))[:, -keep:]
        for rows in torch.split(hidden, ROWS, dim=1):
            yield simulation.head(rows).float().cpu().numpy()

    return logits


def _here() -> dict[str, Any]:
    """What else decides the last bits of torch's sums: the machine, and its threads."""
    import torch

    seen = environment.capture()
    return {
        "machine": {name: seen[name] for name in OF_MACHINE},
        "threads": torch.get_num_threads(),
    }


def _has(device: str) -> bool:
    """Whether torch can put something there."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        return False
    return True
