"""What a student answers beside what its teacher said: the loss of ``distill``, and its judgement.

    mean over positions of KL(p || p_q)  +  c sum over blocks of |h - h_q|^2 / |h|^2

p and h are the teacher's next-token probabilities and stream, p_q and h_q the student's. Logits
exist for a few positions at a time, and blocks whose activations would be many are computed anew
for their gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from slmq_edge import anatomy as names
from slmq_edge.decoder import Decoder, Project, block, embed, head_input, rotary_table
from slmq_edge.quantization import readback
from slmq_edge.quantization.sampling import Lesson

if TYPE_CHECKING:
    from slmq_edge.quantization.student import Student

# Logits that exist at one time.
LOGITS = 2**22
# Bytes kept for gradients above which blocks compute theirs anew; those of a weight among them: as
# it is cut to its ends, rounded, scaled, and, of groups, its step.
ACTIVATIONS, OF_A_WEIGHT = 2**30, 4 * 4
# Tokens that are judged together.
TOGETHER = 2048
NOTHING_FOLLOWS = -100


@dataclass(frozen=True)
class Answers:
    """Sums over positions, each []: KL in nats, and negative log-probabilities of next tokens.

    apart: means over positions, summed over blocks, of how far streams are from the teacher's.
    """

    divergence: Tensor
    surprise: Tensor
    apart: Tensor


def answers(student: Student, lesson: Lesson, blocks: float = 0.0) -> Answers:
    """What the student makes of windows, beside what its teacher made of them.

    blocks: 0 leaves out how far streams are apart, which takes the teacher's own.
    """
    teacher, model, tokens = student.teacher, student.model, lesson.tokens
    project = partial(student.project, model)
    stream = embed(model, tokens)
    true = embed(teacher, tokens) if blocks else None
    apart = stream.new_zeros(())
    rotary = rotary_table(model.anatomy, tokens.shape[1], stream.dtype, stream.device)
    anew = torch.is_grad_enabled() and _held(model, tokens) > ACTIVATIONS
    for layer in range(model.anatomy.layers):
        arguments = (model, layer, stream, rotary, project, student.operands)
        if anew:
            stream = checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            stream = block(*arguments)
        if true is not None:
            with torch.no_grad():
                true = block(teacher, layer, true, rotary)
            apart = apart + _distance(stream, true)
    divergence, surprise = _compared(student, project, head_input(model, stream), lesson)
    return Answers(divergence, surprise, apart)


def _held(model: Decoder, tokens: Tensor) -> int:
    """Bytes that all blocks keep for their gradients."""
    shape = model.anatomy
    activations = 4 * tokens.numel() * shape.layers * (20 * shape.hidden + 10 * shape.ffn)
    return activations + OF_A_WEIGHT * shape.linear_macs_per_token


def _distance(stream: Tensor, true: Tensor) -> Tensor:
    """Mean over positions of |h - h_q|^2 / |h|^2, []."""
    return ((stream - true).square().sum(-1) / true.square().sum(-1)).mean()


def _compared(
    student: Student, project: Project, found: Tensor, lesson: Lesson
) -> tuple[Tensor, Tensor]:
    """KL and surprise, summed; logits exist for a few positions at a time.

    found: what the student's head reads, [windows, length, hidden].
    """
    rows = max(1, LOGITS // student.teacher.anatomy.vocab)
    # Nothing follows a window's last token: it surprises nobody.
    following = functional.pad(lesson.tokens[:, 1:], (0, 1), value=NOTHING_FOLLOWS).flatten()
    parts = zip(
        torch.split(found.flatten(0, 1), rows),
        torch.split(lesson.hidden.flatten(0, 1), rows),
        torch.split(following, rows),
        strict=True,
    )
    sums = found.new_zeros(2, dtype=torch.float32)
    for part in parts:
        few = partial(_few, student.teacher, project)
        if torch.is_grad_enabled():
            sums = sums + checkpoint(few, *part, use_reentrant=False, preserve_rng_state=False)
        else:
            sums = sums + few(*part)
    return sums[0], sums[1]


def _few(
    teacher: Decoder, project: Project, found: Tensor, true: Tensor, following: Tensor
) -> Tensor:
    """KL and surprise of a few positions, float32 [2]."""
    with torch.no_grad():
        (wanted,) = teacher.project(true, (names.HEAD,))
        wanted = torch.log_softmax(wanted.float(), -1)
    (given,) = project(found, (names.HEAD,))
    given = torch.log_softmax(given.float(), -1)
    divergence = functional.kl_div(given, wanted, log_target=True, reduction="sum")
    surprise = functional.nll_loss(
        given.detach(), following, reduction="sum", ignore_index=NOTHING_FOLLOWS
    )
    return torch.stack([divergence, surprise])


@dataclass(frozen=True)
class Judged:
    """On what is held out: mean KL from the teacher, and the student's log-perplexity, in nats."""

    divergence: float
    log_perplexity: float

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.log_perplexity, 700.0))


def judge(student: Student, held: Lesson) -> Judged:
    """The student on windows held out, a few at a time, wherever these lie."""
    windows, length = held.tokens.shape
    few = max(1, TOGETHER // length)
    sums = torch.zeros(2, dtype=torch.float64, device=student.device)
    with torch.no_grad():
        for at in range(0, windows, few):
            found = answers(student, held.part(slice(at, at + few)).to(student.device))
            sums += torch.stack([found.divergence, found.surprise])
    divergence, surprise = readback.numbers(sums)
    return Judged(divergence / (windows * length), surprise / (windows * (length - 1)))
