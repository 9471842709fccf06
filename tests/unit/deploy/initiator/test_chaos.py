"""Trees of initiators under faults: a bounded number of seeds; every planted bug is found by one of them.

`python -m tests.unit.deploy.initiator.chaos FIRST LAST` runs any number of them.
"""

from __future__ import annotations

from itertools import chain

import pytest

from tests.unit.deploy.initiator.chaos import KINDS, run
from tests.unit.deploy.initiator.mutations import MUTATIONS
from tests.unit.deploy.initiator.world import Broken

SEEDS = 100
GROUP = 25
MAX_SEEDS = 1000


@pytest.mark.parametrize("first", range(0, SEEDS, GROUP))
def test_whatever_happens_the_tree_becomes_what_is_described(first: int) -> None:
    seeds = [run(number) for number in range(first, first + GROUP)]
    assert {kind for seed in seeds for kind in seed.kinds} == set(KINDS)
    assert sum(seed.world.delivered for seed in seeds) > 200 * GROUP


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_planted_bug_is_found(name: str) -> None:
    mutation = MUTATIONS[name]
    with mutation.planted():
        broken = next(filter(None, map(broken_by, chain([mutation.seed], range(MAX_SEEDS)))), None)
    assert broken is not None, f"not found in {MAX_SEEDS} seeds"
    assert broken.promise in mutation.promises, str(broken)


def broken_by(seed: int) -> Broken | None:
    try:
        run(seed)
    except Broken as broken:
        return broken
    return None


@pytest.mark.parametrize("seed", sorted({mutation.seed for mutation in MUTATIONS.values()}))
def test_it_is_the_planted_bug_that_is_found(seed: int) -> None:
    run(seed)
