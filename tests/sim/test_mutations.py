"""A simulator that finds nothing proves nothing: every planted bug turns it red, within a thousand seeds."""

from __future__ import annotations

from itertools import chain

import pytest

from fabric.sim.runner import first_failure
from fabric.sim.simulation import simulate
from tests.sim.mutations import MUTATIONS

MAX_SEEDS = 1000


@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_a_planted_bug_is_found(name: str) -> None:
    mutation = MUTATIONS[name]
    with mutation.planted():
        failure = first_failure(chain([mutation.seed], range(MAX_SEEDS)))
    assert failure is not None, f"not found in {MAX_SEEDS} seeds"
    assert failure.promise in mutation.promises, f"{failure.promise}: {failure.found}"


def test_it_is_the_planted_bug_that_is_found() -> None:
    """Without them the same seeds are clean, and pulled out a bug leaves nothing behind."""
    failures = [simulate(seed).failure for seed in sorted({mutation.seed for mutation in MUTATIONS.values()})]
    assert failures == [None] * len(failures)
