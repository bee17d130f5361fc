"""SpinQuant: rotate the stream so that no channel stands out, and learn the rotations.

    arg min over R in M of L(R1, R2 | W, X),     M: the orthogonal matrices     (Liu et al. 2024, 2)

R1 [hidden, hidden] is one for the model, R2 [head_dim, head_dim] one for each block; both start as
random Hadamard matrices, learn by Cayley SGD, and are merged (``rotations`` has the formulas). Two
more stay for run time: R3, of queries and keys where keys are rounded, and R4, of what down_proj
reads. The rotated weights are then rounded by GPTQ, or to nearest within searched ranges.

At 8-bit activations learning with 16-bit weights, the released rule before GPTQ, hardly moves the
rotations: what is learned comes from rounding alone, and that is small (METHODS 3.3). Learning with
the scheme's own weights moves them more.

Differences from the released code: b_v is rotated too; the embedding's mean is kept (METHODS 3.8);
a tied table stays tied; windows are spread over the text; weights that are rounded while learning
are not clipped by search; there is no random QR retraction while learning, instead rotations are
made exactly orthogonal at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from slmq_edge import anatomy as names
from slmq_edge.anatomy import NOTHING_ONLINE, Anatomy, Online
from slmq_edge.calibration import Size
from slmq_edge.decoder import Decoder
from slmq_edge.errors import UsageError, unknown
from slmq_edge.quantization import (
    Prepared,
    RoundLinears,
    Task,
    columns,
    gptq,
    round_searched,
    round_to_nearest,
)
from slmq_edge.quantization.hadamard import factors
from slmq_edge.quantization.learning import (
    Schedule,
    learn,
    loss_of_activations,
    loss_of_target,
)
from slmq_edge.quantization.rotations import (
    Rotations,
    absorb_gains,
    initial_rotations,
    merge,
    rotate_online,
)
from slmq_edge.scheme import Scheme, require_weights

CALIBRATION = Size(windows=128, length=2048)

ROUNDINGS = ("gptq", "nearest")
LEARNED_WEIGHTS = ("16", "target")
STORED = "rotations"


@dataclass(frozen=True)
class Settings(columns.Settings):
    """Learning of the rotations; the defaults are the released code's (METHODS 3.2, 3.6).

    steps: optimizer steps of one window each, 0 keeps the random Hadamard matrices; rate: of the
    first step, falling to 0 along a cosine; clip: largest norm of all gradients together.
    learn_weights: while learning, weights at 16 bits or on the ``target`` grid; ``None`` is the
    released rule, 16 before GPTQ and target before rounding to nearest (``learns_target``).
    online: R3 and R4, auto where their orders are constructible. rounding: of the weights, gptq
    (with its own settings) or nearest (which knows clip_search alone).
    """

    steps: int = 100
    rate: float = 1.5
    clip: float = 1.0
    seed: int = 0
    learn_weights: Literal["16", "target"] | None = None
    online: Literal["auto"] | bool = "auto"
    rounding: Literal["gptq", "nearest"] = "gptq"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 0:
            raise UsageError(f"--steps counts optimizer steps, and cannot be {self.steps}")
        for name, value in (("--rate", self.rate), ("--set clip", self.clip)):
            if not 0 < value < math.inf:
                raise UsageError(f"{name} is a number above 0, not {value}")
        if self.seed < 0:
            raise UsageError(f"--seed is a whole number from 0, not {self.seed}")
        if self.rounding not in ROUNDINGS:
            raise UsageError(unknown("rounding", self.rounding, ROUNDINGS))
        if self.learn_weights not in (None, *LEARNED_WEIGHTS):
            raise UsageError(unknown("--learn-weights", self.learn_weights, LEARNED_WEIGHTS))

    def learns_target(self, scheme: Scheme) -> bool:
        """Whether weights are rounded while the rotations learn.

        Where activations stay in float, 16-bit weights would leave nothing to learn from.
        """
        before_gptq = self.rounding == "gptq" and scheme.activations is not None
        return (self.learn_weights or ("16" if before_gptq else "target")) == "target"


def check(shape: Anatomy, scheme: Scheme, settings: Settings) -> None:
    """Refuse what ``prepare`` could not do.

    Raises:
        Unsupported: the scheme rounds nothing.
        UsageError: online rotations are asked for whose order is not constructed.
    """
    require_weights(scheme, "spinquant")
    if settings.steps and not settings.learns_target(scheme) and not _rounds_inputs(scheme):
        raise UsageError(
            f"--learn-weights 16: {scheme.name} rounds no activations, which leaves nothing to "
            "learn from; leave it out, or give --steps 0"
        )
    _refuse_unused(settings)
    missing = _missing_orders(shape, scheme)
    if settings.online is True and missing:
        raise UsageError(
            f"--online: no Hadamard matrix of order {' or '.join(missing)} is constructed; "
            "leave it out (auto), or give --no-online"
        )


def prepare(model: Decoder, task: Task) -> Prepared:
    """Absorb the norms' gains, learn R1 and R2, and merge them, in place.

    Raises:
        Unsupported, UsageError: as ``check`` says.
        SlmqError: the loss became infinite or NaN.
    """
    settings: Settings = task.settings
    check(model.anatomy, task.scheme, settings)
    absorb_gains(model)
    model = rotate_online(model, _online(model.anatomy, task))
    device = model.weights[f"{names.NORM}.weight"].device
    start = initial_rotations(model.anatomy, settings.seed).to(device)
    merge(model, _learned(model, start, task) if settings.steps else start)
    return Prepared(model, _rounding(settings))


def _learned(model: Decoder, start: Rotations, task: Task) -> Rotations:
    settings: Settings = task.settings
    assert task.calibration is not None, "spinquant.CALIBRATION"
    tokens = task.calibration.tokens.to(start.r1.device)
    stored = task.finished.load(STORED) if task.finished else None
    if stored is not None:
        return Rotations(stored["r1"], stored["r2"]).to(tokens.device)
    learns_target = settings.learns_target(task.scheme)
    loss_of = loss_of_target if learns_target else loss_of_activations
    schedule = Schedule(settings.steps, settings.rate, settings.clip)
    frozen = model.to(torch.float32)
    found = learn(loss_of(frozen, task.scheme), start, tokens, schedule, task.progress)
    if task.finished:
        task.finished.save(STORED, {"r1": found.r1.cpu(), "r2": found.r2.cpu()})
    return found


def _rounds_inputs(scheme: Scheme) -> bool:
    return any(grid is not None for grid in (scheme.activations, scheme.kv, scheme.query))


def _refuse_unused(settings: Settings) -> None:
    """Settings of GPTQ say nothing where weights are rounded to nearest."""
    if settings.rounding == "gptq":
        return
    plain = columns.Settings()
    for name in ("damping", "act_order", "drift", "polish"):
        if getattr(settings, name) != getattr(plain, name):
            raise UsageError(f"--rounding nearest has no {name}: leave it out")


def _rounding(settings: Settings) -> RoundLinears:
    if settings.rounding == "gptq":
        return gptq.GPTQ(settings)
    return round_searched if settings.clip_search else round_to_nearest


def _online(shape: Anatomy, task: Task) -> Online:
    """R3 where keys are rounded, and R4: as far as asked and constructible."""
    settings: Settings = task.settings
    if settings.online is False:
        return NOTHING_ONLINE
    for order in _missing_orders(shape, task.scheme):
        task.note(f"no online rotation of {order}: no Hadamard matrix of that order is constructed")
    return Online(
        keys=task.scheme.kv is not None and factors(shape.head_dim) is not None,
        down=factors(shape.ffn) is not None,
    )


def _missing_orders(shape: Anatomy, scheme: Scheme) -> list[str]:
    wanted = {f"{shape.ffn} (R4, ffn)": shape.ffn}
    if scheme.kv is not None:
        wanted[f"{shape.head_dim} (R3, head_dim)"] = shape.head_dim
    return [name for name, order in wanted.items() if factors(order) is None]
