"""The next command for a managent, from the state that its boot stub told last. Pure.

An initiator follows no script: after every answer it asks `next_step` again. So it does not matter whether a state came
from an answer, from a beat, from a table that another incarnation left, or from a boot stub that refused because it
was further than expected: what is left to do is the same. (Figures 6 and 7 and Table 1 of HPL-2001-321.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deploy.records import Prints
from deploy.states import EnvState, LifeState, Verb

RUNS: frozenset[LifeState] = frozenset({"active", "passive"})
Step = Verb | Literal["inspect", "clear"]
"""inspect: an InspectCall. clear: its subtree has to be removed first, by itself."""

Rework = Literal["", "managent", "all"]
"""What an inspection found: another managent configuration; another code or installation."""


@dataclass(frozen=True, slots=True)
class Goal:
    """`life`: active or passive; configured (shut down); non-existent (nothing of it is left). `check`: compare it with
    the description. `restart`: it runs, but not well. `clear`: it is an initiator that goes, and its subtree before it.
    `unsure`: a command may be on its way that nobody has answered."""

    life: LifeState = "active"
    check: bool = False
    rework: Rework = ""
    restart: bool = False
    clear: bool = False
    unsure: bool = False


def next_step(env: EnvState, life: LifeState, goal: Goal) -> Step | None:
    """None: the goal is reached."""
    installed = env == "installed"
    if goal.clear:
        if installed and life == "active":
            return "restart" if goal.restart else "clear"
        return _bring(env, life, "active")
    if goal.life == "non-existent":
        if life in RUNS:
            return "shutdown"
        there = env != "non-existent" or life != "non-existent" or goal.unsure
        return "uninstall" if there else None
    if installed and goal.rework == "all":
        return "shutdown" if life in RUNS else "uninstall"
    if installed and goal.check:
        return "inspect"
    if installed and goal.rework == "managent":
        return "shutdown" if life in RUNS else _bring(env, "deployed", goal.life)
    if goal.restart and installed and life in RUNS:
        return "restart"
    return _bring(env, life, goal.life)


def _bring(env: EnvState, life: LifeState, want: LifeState) -> Step | None:
    if env != "installed":
        return "deploy"  # a deployment that failed half way is made anew from where it is
    if life == "non-existent":
        return "uninstall"
    if life == "deployed":
        return "configure-managent"
    if want not in RUNS:
        return "shutdown" if life in RUNS else None
    if life == "configured":
        return "start"
    if life == want:
        return None
    return "deactivate" if want == "passive" else "activate"


def rework(have: Prints, want: Prints) -> Rework:
    """What has to be done anew, by an inspection."""
    if (have.code, have.install) != (want.code, want.install):
        return "all"
    return "managent" if have.managent != want.managent else ""
