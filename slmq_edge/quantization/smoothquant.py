"""SmoothQuant: move the difficulty of rounding from activations into weights.

    s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)                     (Xiao et al. 2023, equation 4)
    X' = X diag(s)^-1,   W' = diag(s) W,   so that X' W' = X W      (equation 3)

X is what a norm feeds to its linears, so that diag(s)^-1 folds into the norm's gain; max|W_j| runs
over all the linears of the feed. ``o_proj`` and ``down_proj`` have no norm before them and are
left as they are (METHODS 1.2). A channel that no token ever used keeps s = 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from slmq_edge.anatomy import FEEDS, Anatomy
from slmq_edge.calibration import Size, feed_absmax
from slmq_edge.decoder import Decoder
from slmq_edge.errors import UsageError
from slmq_edge.quantization import Prepared, Task
from slmq_edge.scheme import Scheme, require_integer

CALIBRATION = Size(windows=512, length=512)

SMALLEST = 1e-5
# What is good for 8-bit weights moves outliers into 4-bit ones (METHODS 1.4, 5.4).
ALPHA_BY_WEIGHT_BITS = {8: 0.85, 4: 0.5}


@dataclass(frozen=True)
class Settings:
    """alpha: share of the difficulty that is moved, 0..1; ``None`` means the scheme's default."""

    alpha: float | None = None

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0.0 <= self.alpha <= 1.0:
            raise UsageError(f"--alpha is a share between 0 and 1, not {self.alpha}")


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
    grid, _ = require_integer(task.scheme, "smoothquant")
    assert task.calibration is not None, "smoothquant.CALIBRATION"
    alpha = ALPHA_BY_WEIGHT_BITS[grid.bits] if settings.alpha is None else settings.alpha
    device = model.weights["model.norm.weight"].device
    absmax = feed_absmax(
        model,
        task.calibration.tokens.to(device),
        progress=lambda share: task.progress(share, "calibrating"),
    )
    return Prepared(smooth(model, absmax, alpha))


def smooth(model: Decoder, absmax: dict[str, Tensor], alpha: float) -> Decoder:
    """Fold the smoothing factors into norms and linears; ``absmax`` is by name of norm."""
    weights = dict(model.weights)
    for layer in range(model.anatomy.layers):
        for feed in FEEDS:
            norm = model.anatomy.block(layer, feed.norm)
            linears = [f"{model.anatomy.block(layer, name)}.weight" for name in feed.linears]
            factors = smoothing_factors(absmax[norm], [weights[name] for name in linears], alpha)
            weights[f"{norm}.weight"] = weights[f"{norm}.weight"] / factors
            for name in linears:
                weights[name] = weights[name] * factors
    return replace(model, weights=weights)


def smoothing_factors(x_absmax: Tensor, linears: list[Tensor], alpha: float) -> Tensor:
    """Equation 4: s [in] from the absmax of the inputs [in] and the weights [out, in] they meet."""
    w_absmax = torch.stack([weight.abs().amax(0) for weight in linears]).amax(0)
    factors = x_absmax**alpha / w_absmax.clamp(min=SMALLEST) ** (1 - alpha)
    return torch.where(x_absmax > 0, factors.clamp(min=SMALLEST), torch.ones_like(factors))
