"""Whether the GPU or the board that a cell needs is there, now. Nothing is sent or installed."""

from __future__ import annotations

import functools
from pathlib import Path

from slmq_edge.bench.cells import Cell
from slmq_edge.errors import SlmqError

SECONDS = 30.0


def missing(out: Path, cell: Cell) -> str | None:
    """Why a cell has to wait; ``None``: it need not."""
    if cell.is_remote:
        return unreachable(_inventory(out, cell.address))
    return no_gpu() if cell.gpu else None


def _inventory(out: Path, address: str) -> str:
    return str(out / address) if "://" not in address else address


def unreachable(address: str) -> str | None:
    """Why a board does not answer; asked anew each time, for it may be switched on meanwhile."""
    from slmq_edge.remote.inventory import targets
    from slmq_edge.remote.transport import connect

    name = address
    try:
        (target,) = targets(address)
        name = target.name
        transport = connect(target)
        try:
            done = transport.run(("true",), timeout=SECONDS)
        finally:
            transport.close()
    except SlmqError as error:
        return f"{name} does not answer: {str(error).removeprefix(f'{name}: ')}"
    return None if done.code == 0 else f"{name} does not answer: {done.stderr.strip()[:200]}"


@functools.cache
def no_gpu() -> str | None:
    """Why this machine cannot do what needs an NVIDIA GPU; ``None``: it has one."""
    from slmq_edge.runner.look import look

    seen = look()
    if seen["gpus"] or seen["nv_tegra_release"] or seen["l4t_core"]:
        return None
    return "needs an NVIDIA GPU, and this machine has none that NVML sees"
