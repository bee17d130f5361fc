"""Ranges of static activations: one for every input that linears share, found by calibration.

    absmax       the least and the greatest value that any token had
    percentile   these, cut to the least magnitude that 99.99 % of all values lie within
    mse          these, shrunk by the one of 1.00, 0.99 .. 0.21 that loses the least squares

One pass over the text is enough, whatever its length. Percentile and squares are read off a
histogram of bins of width w. No value is further than w / 2 from the centre of its bin, and so the
root of the mean square is known to w / 2: a range is shrunk only where it gains more than that can
mislead, and mse never loses more than absmax.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from slmq_edge import anatomy as names
from slmq_edge.decoder import Decoder, Project, hidden_states
from slmq_edge.errors import SlmqError
from slmq_edge.quantization import Progress
from slmq_edge.quantization.rounding import SMALLEST_RANGE, Extent, Steps, quantize, steps
from slmq_edge.quantization.streams import batches
from slmq_edge.scheme import Grid, Range, Scheme

# Bins on either side of zero, of which the values fill at least half.
SIDE = 2**15
PERCENTILE = 0.9999
# torch.histc counts in the dtype of its input, and float32 counts no further.
COUNTABLE = 2**24


class Seen:
    """What values an input had: the least, the greatest and, where asked for, how many of each.

    counts: int64 [2 * SIDE], of equal bins over -reach .. reach. reach is a power of two, and
    doubles when a value lies beyond it: bins are then joined in pairs.
    """

    def __init__(self, counting: bool) -> None:
        self.low, self.high = math.inf, -math.inf
        self.reach = 0.0
        self.counts = torch.zeros(2 * SIDE, dtype=torch.int64)
        self._counting = counting

    def add(self, x: Tensor) -> None:
        """Look at more values, of any shape.

        Raises:
            SlmqError: there is an infinity or a NaN among them.
        """
        low, high = torch.stack(torch.aminmax(x)).tolist()
        if not (math.isfinite(low) and math.isfinite(high)):
            raise SlmqError("activations became infinite or NaN: no static range holds them")
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self._counting:
            self._count(x)

    def _count(self, x: Tensor) -> None:
        self.counts = self.counts.to(x.device)
        absmax = max(-self.low, self.high, SMALLEST_RANGE)
        beyond = 2.0 ** math.frexp(absmax)[1]
        self.reach = self.reach or beyond
        while self.reach < beyond:
            joined = self.counts.view(SIDE, 2).sum(1)
            self.counts = functional.pad(joined, (SIDE // 2, SIDE // 2))
            self.reach *= 2
        # A power of two scales exactly, so that a value's bin never depends on rounding.
        bins = torch.floor(x.flatten() * (SIDE / self.reach))
        for part in torch.split(bins, COUNTABLE):
            self.counts += torch.histc(part, 2 * SIDE, -SIDE, SIDE).to(torch.int64)

    def extent(self, how: Range, grid: Grid) -> Extent:
        """The range [1] that ``how`` makes of the values, float64."""
        ends = torch.tensor([[self.low], [self.high]], dtype=torch.float64)
        whole = Extent(ends[0], ends[1])
        if how == "absmax":
            return whole
        return self._percentile(whole) if how == "percentile" else self._least_squares(whole, grid)

    @property
    def _width(self) -> float:
        return self.reach / SIDE

    def _percentile(self, whole: Extent) -> Extent:
        magnitudes = (self.counts[SIDE:] + self.counts[:SIDE].flip(0)).cpu().cumsum(0)
        needed = math.ceil(PERCENTILE * int(magnitudes[-1]))
        within = (int((magnitudes < needed).sum()) + 1) * self._width
        return Extent(whole.low.clamp(-within, within), whole.high.clamp(-within, within))

    def _least_squares(self, whole: Extent, grid: Grid) -> Extent:
        filled = self.counts.cpu().nonzero()[:, 0]
        counts = self.counts.cpu()[filled].to(torch.float64)
        centres = ((filled - SIDE + 0.5) * self._width).clamp(self.low, self.high)

        def root_mean_square(found: Extent) -> float:
            errors = quantize(centres, grid, found).values(grid) - centres
            return math.sqrt(float((counts * errors.square()).sum() / counts.sum()))

        # Towards zero, which the range may not hold.
        around_zero = Extent(whole.low.clamp(max=0), whole.high.clamp(min=0))
        shares = (percent / 100 for percent in range(100, 20, -1))
        best = min((around_zero.clipped(share, share) for share in shares), key=root_mean_square)
        gain = root_mean_square(whole) - root_mean_square(best)
        return best if gain > self._width else whole


def extent_of(x: Tensor, how: Range, grid: Grid) -> Extent:
    """The range [1] of one tensor of any shape, in its dtype and where it is."""
    seen = Seen(counting=how != "absmax")
    seen.add(x)
    found = seen.extent(how, grid)
    return Extent(found.low.to(x), found.high.to(x))


def find(
    model: Decoder,
    tokens: Tensor,
    scheme: Scheme,
    progress: Progress,
    project: Project | None = None,
) -> dict[str, Steps]:
    """Scale and zero point float32 [1] for inputs of linears, by the first linear that reads them.

    Of all inputs that the scheme rounds by a calibrated range: not of a head that stays float, nor
    of an o_proj whose grid is another. tokens: int64 [windows, length]. project: what multiplies by
    the linears; by default the model's own weights.

    Raises:
        SlmqError: an activation is infinite or NaN.
    """
    found: dict[str, Seen] = {}

    def see(linear: str, x: Tensor) -> None:
        if _static_grid(model, scheme, linear) is not None:
            found.setdefault(linear, Seen(counting=scheme.range != "absmax")).add(x)

    _watch(model, tokens, see, progress, project or model.project)
    stored = {}
    for linear, seen in found.items():
        grid = _static_grid(model, scheme, linear)
        assert grid is not None, "only such inputs were looked at"
        stored[linear] = _stored(steps(seen.extent(scheme.range, grid), grid))
    return stored


def _static_grid(model: Decoder, scheme: Scheme, linear: str) -> Grid | None:
    """The grid of a linear's input, if its range comes from calibration."""
    grid = scheme.activations
    if linear == names.HEAD and scheme.lm_head(model.anatomy.tied) is None:
        grid = None
    if linear.endswith(names.O) and scheme.mixed is not None:
        grid = scheme.mixed
    return grid if grid is not None and grid.per == "tensor" else None


def _stored(found: Steps) -> Steps:
    zero = None if found.zero is None else found.zero.to(torch.float32)
    return Steps(found.scale.to(torch.float32), zero)


def _watch(
    model: Decoder,
    tokens: Tensor,
    see: Callable[[str, Tensor], None],
    progress: Progress,
    multiply: Project,
) -> None:
    """Show ``see`` every input of every linear, named by the first linear that reads it.

    The head's product, the largest of all, is not taken.
    """
    device = model.weights[f"{names.EMBED}.weight"].device

    def project(inputs: Tensor, linears: tuple[str, ...]) -> tuple[Tensor, ...]:
        see(linears[0], inputs)
        return multiply(inputs, linears)

    progress(0.0, "finding ranges")
    with torch.no_grad():
        for part in batches(tokens):
            see(names.HEAD, hidden_states(model, tokens[part].to(device), project))
            progress(part.stop / len(tokens), "finding ranges")
