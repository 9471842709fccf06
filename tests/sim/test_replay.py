"""The same seed is the same run: in another process, and with another PYTHONHASHSEED."""

from __future__ import annotations

import os
import subprocess
import sys

from fabric.sim.simulation import simulate
from fabric.sim.world import Options

SEED = 9


def story_of(hash_seed: str) -> list[str]:
    command = [sys.executable, "-m", "fabric.sim", "--seed", str(SEED), "--transcript"]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert not done.stderr
    return done.stdout.splitlines()


def test_a_seed_is_replayed_whatever_the_hashes_are() -> None:
    one = story_of("1")
    assert len(one) > 1000
    assert one == story_of("2")


def test_seeds_before_it_and_the_transcript_itself_make_no_difference() -> None:
    simulate(SEED + 1)
    told, silent = simulate(SEED, Options(story=True)), simulate(SEED)
    assert (told.events, told.messages, told.virtual_s) == (silent.events, silent.messages, silent.virtual_s)
    assert told.faults == silent.faults


def test_another_seed_is_another_run() -> None:
    assert simulate(SEED).events != simulate(SEED + 1).events
