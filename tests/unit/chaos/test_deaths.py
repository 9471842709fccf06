"""Who ended by itself is found, once; whom a fault ended is not."""

from __future__ import annotations

from typing import Literal

from fabric.chaos.deaths import Deaths
from fabric.local.spec import make_spec
from fabric.local.state import LocalState, NodeView, Process, Service, nodes_of

SPEC = make_spec(racks=1, compute=2, storage=0)
ALIVE = Service("http://192.0.2.1:1", Process(5, 1), True)


def state(ended: str = "", pid: int = 11, api: Service = ALIVE) -> LocalState:
    now: Literal["dead", "registered"] = "dead" if ended else "registered"
    one, other = nodes_of(SPEC)
    views = (NodeView(one, now, Process(pid, 1), ended), NodeView(other, "registered", Process(12, 1)))
    return LocalState("up", "/f", SPEC, Process(1, 1), ALIVE, api, views, {}, {})


def test_an_agent_that_ends_by_itself_is_found_once() -> None:
    deaths = Deaths()
    assert deaths.look(state(), (), 1.0) == []
    assert deaths.look(state("exited with 70"), (), 2.0) == [], "it may be one that does it at an armed step"
    assert deaths.look(state("exited with 70"), (), 3.1) == ["r1c01"]
    assert deaths.look(state("exited with 70"), (), 5.0) == []
    assert [(one.promise, one.at_s, one.text) for one in deaths.findings] == [
        ("durable", 2.0, "the agent of r1c01 ended by itself: exited with 70")
    ]
    deaths.look(state("exited with 70", pid=77), (), 6.0)
    assert deaths.look(state("exited with 70", pid=77), (), 7.0) == ["r1c01"], "its next process, too"


def test_whom_a_fault_ended_is_not() -> None:
    deaths = Deaths()
    for at in (1.0, 3.0, 5.0):
        assert deaths.look(state("exited with 1"), ("r1c01",), at) == []
    deaths.look(state("exited with 1"), (), 6.0)
    deaths.look(state(), (), 6.5)
    assert deaths.look(state("exited with 1"), (), 7.4) == [], "it was started again in between"
    for at in (8.0, 10.0):
        assert deaths.look(state("killed by SIGKILL"), (), at) == [], "nobody does that to himself unseen"


def test_an_api_that_ends_by_itself_is_found() -> None:
    deaths = Deaths()
    gone = Service("http://192.0.2.1:1", Process(5, 1), False, "exited with 1")
    deaths.look(state(api=gone), (), 1.0)
    assert deaths.look(state(api=gone), (), 2.0) == ["api"]
    assert "the API ended by itself" in deaths.findings[0].text
    assert Deaths().look(state(api=gone), ("api",), 9.0) == []
