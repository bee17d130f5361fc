"""jetson-stats' client, with a stand-in that has the names its documentation describes."""

from __future__ import annotations

import sys
import time
import types
from typing import Any

import pytest

from slmq_edge.profiles.jtop import Jtop


def jtop_module(power: Any, readings: int = 10**6) -> types.ModuleType:
    """A module whose client tells this so many times, and then that the service is gone."""

    class Client:
        def __init__(self, interval: float) -> None:
            self.left = readings
            self.power = power

        def __enter__(self) -> Client:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def ok(self) -> bool:
            time.sleep(0.01)
            self.left -= 1
            return self.left >= 0

    module = types.ModuleType("jtop")
    module.__dict__["jtop"] = Client
    return module


def started(monkeypatch: pytest.MonkeyPatch, module: Any) -> Jtop:
    monkeypatch.setitem(sys.modules, "jtop", module)
    found = Jtop()
    found.start()
    return found


def test_rails_are_watts_and_the_mean_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rails = {"VDD_SOC": {"power": 2500, "avg": 1, "volt": 5000, "curr": 500}, "NEW": {}}
    jtop = started(
        monkeypatch, jtop_module({"rail": rails, "tot": {"power": 9000, "name": "VDD_IN"}})
    )
    assert jtop.watts() == {"VDD_SOC": 2.5, "NEW": None, "VDD_IN": 9.0}
    assert jtop.names == ("VDD_SOC", "NEW", "VDD_IN")
    assert jtop.reasons == {}
    jtop.close()
    assert jtop.watts() == dict.fromkeys(jtop.names)
    assert set(jtop.reasons.values()) == {"jtop was ended"}


@pytest.mark.parametrize("total", [{"power": 9000}, {"power": 9000, "name": None}])
def test_a_sum_of_its_own_is_not_taken_for_a_rail(
    total: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    jtop = started(monkeypatch, jtop_module({"rail": {"VDD_SOC": {"power": 700}}, "tot": total}))
    assert jtop.watts() == {"VDD_SOC": 0.7}
    jtop.close()


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (None, "jtop is not installed: sudo pip3 install jetson-stats, then reboot"),
        (jtop_module({"rail": {}}, 0), "jtop's service ended the connection"),
        (jtop_module({}, 1), "jtop: KeyError: 'rail'"),
    ],
)
def test_none_to_be_had(module: Any, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    jtop = started(monkeypatch, module)
    assert jtop.watts() == {}
    assert jtop.reason == why
    jtop.close()
