"""A cell for each role of the matrix, on real processes: killed at a step of the flow, or stopped. (All of them:
`fabric chaos matrix`.)"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fabric.chaos.cells import choose
from fabric.chaos.matrix import Matrix

pytestmark = pytest.mark.system
KILLED = (
    "api.recorded",
    "coordinator.plan-written",
    "rack.reserve-passed",
    "agent.started",
    "storage.racks-asked",
    "holder.serving",
)


@pytest.fixture(scope="module")
def matrix() -> Iterator[Matrix]:
    with Matrix() as one:
        yield one


@pytest.mark.parametrize("step", KILLED)
def test_whoever_is_killed_the_request_ends_and_all_is_whole_again(matrix: Matrix, step: str):
    (cell,) = matrix.run(choose(steps=(step,)))
    assert cell.holds, f"{cell.victim} was killed: {cell.told}"
    assert cell.state == "running"
