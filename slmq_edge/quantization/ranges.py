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
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from slmq_edge import anatomy as names
from slmq_edge.anatomy import Anatomy
from slmq_edge.decoder import Decoder, Project, hidden_states
from slmq_edge.errors import SlmqError
from slmq_edge.quantization import Progress, readback
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

    All of it lies where the values do, so that a GPU is not waited for, and is made at once: a
    small tensor that is made between the buffers of a batch keeps the heap from shrinking. ends:
    float64 [2], least and greatest. counts: int64 [2 * SIDE], of equal bins over -reach .. reach.
    reach, float64 [], is a power of two, and doubles when a value lies beyond it: bins are then
    joined in pairs.
    """

    def __init__(self, counting: bool, device: torch.device | str = "cpu") -> None:
        self.ends = torch.tensor([math.inf, -math.inf], dtype=torch.float64, device=device)
        self.reach = torch.zeros((), dtype=torch.float64, device=device)
        self.counts = torch.zeros(2 * SIDE * counting, dtype=torch.int64, device=device)
        self._counting = counting

    def add(self, x: Tensor) -> None:
        """Look at more values, of any shape; on a GPU ``check`` says later what was wrong with it.

        Raises:
            SlmqError: there is an infinity or a NaN among them.
        """
        low, high = torch.aminmax(x)
        torch.minimum(self.ends[0], low.to(torch.float64), out=self.ends[0])
        torch.maximum(self.ends[1], high.to(torch.float64), out=self.ends[1])
        if x.device.type == "cpu":
            _refuse_what_is_no_number(self.ends)
        if self._counting:
            self._count(x)

    def _count(self, x: Tensor) -> None:
        absmax = self.ends.abs().amax().clamp(min=SMALLEST_RANGE)
        # The next power of two, exactly: a number over what frexp calls its mantissa.
        beyond = absmax / torch.frexp(absmax).mantissa
        self._reach_to(
            torch.where(beyond.isfinite(), torch.maximum(beyond, self.reach), self.reach)
        )
        # A power of two scales exactly, so that a value's bin never depends on rounding.
        bins = torch.floor(x.flatten() * (SIDE / self.reach))
        for part in torch.split(bins, COUNTABLE):
            self.counts += torch.histc(part, 2 * SIDE, -SIDE, SIDE).to(torch.int64)

    def _reach_to(self, reach: Tensor) -> None:
        """Join bins, of each as many as the reach grows times."""
        if reach.device.type == "cpu" and reach == self.reach:
            return
        centres = _centres(reach.device) * (self.reach / reach)
        joined = torch.floor(centres).to(torch.int64) + SIDE
        self.counts.copy_(torch.zeros_like(self.counts).index_add(0, joined, self.counts))
        self.reach.copy_(reach)

    def extent(self, how: Range, grid: Grid) -> Extent:
        """The range [1] that ``how`` makes of the values, float64, where they are."""
        whole = Extent(self.ends[:1], self.ends[1:])
        if how == "absmax":
            return whole
        return self._percentile(whole) if how == "percentile" else self._least_squares(whole, grid)

    @property
    def _width(self) -> Tensor:
        return self.reach / SIDE

    def _percentile(self, whole: Extent) -> Extent:
        magnitudes = (self.counts[SIDE:] + self.counts[:SIDE].flip(0)).cumsum(0)
        needed = (PERCENTILE * magnitudes[-1].to(torch.float64)).ceil().to(torch.int64)
        within = ((magnitudes < needed).sum() + 1) * self._width
        return Extent(*(torch.clamp(end, -within, within) for end in (whole.low, whole.high)))

    def _least_squares(self, whole: Extent, grid: Grid) -> Extent:
        counts, centres = self.counts, _centres(self.counts.device)
        if counts.device.type == "cpu":  # where empty bins cost time, and knowing them none
            filled = counts.nonzero()[:, 0]
            counts, centres = counts[filled], centres[filled]
        counts = counts.to(torch.float64)
        centres = torch.clamp(centres * self._width, whole.low, whole.high)

        def root_mean_square(found: Extent) -> Tensor:
            errors = quantize(centres, grid, found).values(grid) - centres
            return ((counts * errors.square()).sum() / counts.sum()).sqrt()

        # Towards zero, which the range may not hold.
        around_zero = Extent(whole.low.clamp(max=0), whole.high.clamp(min=0))
        tried = [
            around_zero.clipped(percent / 100, percent / 100) for percent in range(100, 20, -1)
        ]
        lost = torch.stack([root_mean_square(one) for one in tried])
        best = lost.argmin()[None]
        gains = root_mean_square(whole) - lost.amin() > self._width
        low, high = (torch.stack(ends)[best, 0] for ends in zip(*map(_ends, tried), strict=True))
        return Extent(torch.where(gains, low, whole.low), torch.where(gains, high, whole.high))


def _centres(device: torch.device) -> Tensor:
    """Of all bins, in their widths from zero, float64 [2 * SIDE]."""
    return torch.arange(-SIDE, SIDE, dtype=torch.float64, device=device) + 0.5


def _ends(found: Extent) -> tuple[Tensor, Tensor]:
    return found.low, found.high


def _refuse_what_is_no_number(*ends: Tensor) -> None:
    if ends and not all(map(math.isfinite, readback.numbers(*ends))):
        raise SlmqError("activations became infinite or NaN: no static range holds them")


def extent_of(x: Tensor, how: Range, grid: Grid) -> Extent:
    """The range [1] of one tensor of any shape, in its dtype and where it is."""
    seen = Seen(how != "absmax", x.device)
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
    device = model.weights[f"{names.EMBED}.weight"].device
    found = {
        linear: Seen(scheme.range != "absmax", device)
        for linear in _read(model.anatomy)
        if _static_grid(model, scheme, linear) is not None
    }

    def see(linear: str, x: Tensor) -> None:
        if linear in found:
            found[linear].add(x)

    _watch(model, tokens, see, progress, project or model.project)
    _refuse_what_is_no_number(*(seen.ends for seen in found.values()))
    stored = {}
    for linear, seen in found.items():
        grid = _static_grid(model, scheme, linear)
        assert grid is not None, "only such inputs were looked at"
        stored[linear] = _stored(steps(seen.extent(scheme.range, grid), grid))
    return stored


def _read(shape: Anatomy) -> Iterator[str]:
    """The first linear of all that share an input, of every input, in the order of the model."""
    for layer in range(shape.layers):
        yield from shape.blocks(layer, (names.Q, names.O, names.GATE_UP[0], names.DOWN))
    yield names.HEAD


def _static_grid(model: Decoder, scheme: Scheme, linear: str) -> Grid | None:
    """The grid of a linear's input, if its range comes from calibration."""
    grid = scheme.activations
    if linear == names.HEAD and scheme.lm_head(model.anatomy.tied) is None:
        grid = None
    if linear.endswith(names.O) and scheme.mixed is not None:
        grid = scheme.mixed
    return grid if grid is not None and grid.per == "tensor" else None


def _stored(found: Steps) -> Steps:
    zero = None if found.zero is None else found.zero.to("cpu", torch.float32)
    return Steps(found.scale.to("cpu", torch.float32), zero)


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
    tokens = tokens.to(model.weights[f"{names.EMBED}.weight"].device)

    def project(inputs: Tensor, linears: tuple[str, ...]) -> tuple[Tensor, ...]:
        see(linears[0], inputs)
        return multiply(inputs, linears)

    progress(0.0, "finding ranges")
    with torch.no_grad():
        for part in batches(tokens):
            see(names.HEAD, hidden_states(model, tokens[part], project))
            progress(part.stop / len(tokens), "finding ranges")
