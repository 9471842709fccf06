"""Which fabric a load is run against."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from fabric.load import place
from fabric.local.control import ControlClient, ControlError
from tests.unit.load.test_meters import STATE


@pytest.mark.parametrize("phase", ["starting", "leaving"])
def test_a_fabric_that_is_not_up_is_told_from_one(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before that its API has no address."""
    state = msgspec.structs.replace(STATE, phase=phase)
    monkeypatch.setattr(ControlClient, "status", lambda self: state)
    with pytest.raises(ControlError, match=f"the fabric in /nowhere is {phase}: expected one that is up"):
        place.local(Path("/nowhere"))
    state = STATE
    assert place.local(Path("/nowhere")).url == "http://127.0.0.1:2"
