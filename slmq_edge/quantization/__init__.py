"""The methods. Each prepares a float model for rounding; rounding comes after, once.

A method is a module here with a frozen dataclass ``Settings``, the ``CALIBRATION`` windows it asks
for (``None``: none), and

    prepare(model, calibration, scheme, settings, progress) -> Decoder

whose result computes what ``model`` computes (to 1e-9 in float64), and a line in ``METHODS``.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from slmq_edge.errors import MissingExtra, UsageError, unknown

if TYPE_CHECKING:
    from slmq_edge.calibration import Calibration, Size
    from slmq_edge.decoder import Decoder
    from slmq_edge.scheme import Scheme

METHODS: dict[str, str] = {
    "none": "round to nearest, nothing prepared",
    "smoothquant": "move the difficulty of rounding from activations into weights",
    "spinquant": "rotate the stream by learned rotations, so that no channel stands out",
}

# Called with the share of the work done, 0..1, and what is being done.
Progress = Callable[[float, str], None]


class Method(Protocol):
    """What the module of a method offers."""

    Settings: type[Any]
    CALIBRATION: Size | None

    def prepare(
        self,
        model: Decoder,
        calibration: Calibration | None,
        scheme: Scheme,
        settings: Any,
        progress: Progress,
    ) -> Decoder: ...


def method(name: str) -> Method:
    """Import a method by name (and torch with it).

    Raises:
        UsageError: unknown name; MissingExtra: torch is not installed.
    """
    if name not in METHODS:
        raise UsageError(unknown("method", name, tuple(METHODS)))
    try:
        import torch  # noqa: F401  the one dependency all methods share
    except ImportError as error:
        raise MissingExtra("torch", "quantize") from error
    return cast("Method", import_module(f"slmq_edge.quantization.{name}"))
