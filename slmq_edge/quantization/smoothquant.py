"""SmoothQuant: move the difficulty of rounding from activations into weights.

    s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)                     (Xiao et al. 2023, equation 4)
    X' = X diag(s)^-1,   W' = diag(s) W,   so that X' W' = X W      (equation 3)

X is what a norm feeds to its linears, so that diag(s)^-1 folds into the norm's gain; max|W_j| runs
over all the linears of the feed. ``o_proj`` and ``down_proj`` have no norm before them and are
left as they are (METHODS 1.2). A channel that no token ever used keeps s = 1.

alpha is one for the model, or searched for every feed: see ``alphas``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from slmq_edge.anatomy import FEEDS, Anatomy, Feed
from slmq_edge.calibration import Size, feed_absmax
from slmq_edge.decoder import Decoder
from slmq_edge.errors import UsageError
from slmq_edge.quantization import Prepared, Task
from slmq_edge.scheme import Scheme, require_integer

CALIBRATION = Size(windows=512, length=512)

SMALLEST = 1e-5
# What is good for 8-bit weights moves outliers into narrower ones (METHODS 1.4, 5.4).
ALPHA_OF_8_BITS, ALPHA_OF_FEWER = 0.85, 0.5

Alpha = float | Literal["auto"] | None


@dataclass(frozen=True)
class Settings:
    """alpha: share of the difficulty that is moved, 0..1, or ``auto``: searched for every feed.

    ``None`` means the scheme's default.
    """

    alpha: Alpha = None

    def __post_init__(self) -> None:
        if self.alpha is None or self.alpha == "auto":
            return
        if isinstance(self.alpha, str) or not 0.0 <= self.alpha <= 1.0:
            raise UsageError(f"--alpha is a share between 0 and 1, or auto, not {self.alpha}")


def check(shape: Anatomy, scheme: Scheme, settings: Settings) -> None:
    """Refuse a scheme that leaves weights or activations in float.

    Raises:
        Unsupported: names the scheme.
    """
    require_integer(scheme, "smoothquant")


def prepare(model: Decoder, task: Task) -> Prepared:
    """Smooth the inputs of q, k, v and of gate, up in every block.

    Raises:
        Unsupported: the scheme leaves weights or activations in float.
    """
    settings: Settings = task.settings
    require_integer(task.scheme, "smoothquant")
    assert task.calibration is not None, "smoothquant.CALIBRATION"
    tokens = task.calibration.tokens
    absmax = feed_absmax(model, tokens, progress=lambda share: task.progress(share, "calibrating"))
    if settings.alpha == "auto":
        from slmq_edge.quantization import alphas

        found = alphas.search(model, absmax, tokens, task.scheme, task.progress)
        task.note(alphas.in_words(found))
        return Prepared(smooth(model, absmax, found))
    alpha = default_alpha(task.scheme) if settings.alpha is None else settings.alpha
    return Prepared(smooth(model, absmax, alpha))


def default_alpha(scheme: Scheme) -> float:
    """0.85 for 8-bit weights, 0.5 for fewer bits."""
    grid, _ = require_integer(scheme, "smoothquant")
    return ALPHA_OF_8_BITS if grid.bits == 8 else ALPHA_OF_FEWER


def smooth(
    model: Decoder, absmax: Mapping[str, Tensor], alpha: float | Mapping[str, float]
) -> Decoder:
    """Fold smoothing factors into norms and linears, in place; absmax, alpha by name of norm."""
    for layer in range(model.anatomy.layers):
        for feed in FEEDS:
            norm = model.anatomy.block(layer, feed.norm)
            share = alpha[norm] if isinstance(alpha, Mapping) else alpha
            smooth_feed(model.anatomy, layer, feed, model.weights, absmax[norm], share)
    return model


def smooth_feed(
    shape: Anatomy,
    layer: int,
    feed: Feed,
    weights: dict[str, Tensor],
    absmax: Tensor,
    alpha: float,
) -> None:
    """Fold one feed's smoothing factors, in place, into weights by their names."""
    linears = [f"{linear}.weight" for linear in shape.blocks(layer, feed.linears)]
    factors = smoothing_factors(absmax, [weights[name] for name in linears], alpha)
    norm = f"{shape.block(layer, feed.norm)}.weight"
    weights[norm] = weights[norm] / factors
    for name in linears:
        weights[name] = weights[name] * factors


def smoothing_factors(x_absmax: Tensor, linears: list[Tensor], alpha: float) -> Tensor:
    """Equation 4: s [in] from the absmax of the inputs [in] and the weights [out, in] they meet."""
    w_absmax = torch.stack([weight.abs().amax(0) for weight in linears]).amax(0)
    factors = x_absmax**alpha / w_absmax.clamp(min=SMALLEST) ** (1 - alpha)
    return torch.where(x_absmax > 0, factors.clamp(min=SMALLEST), torch.ones_like(factors))
