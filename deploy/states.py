"""The states of a managent and of its environment, and the commands between them (HPL-2001-321, 3.2, 3.3, 4.1).

Two state machines, as tables: `ENVIRONMENT` is Figure 6, `LIFE` is Figure 7; a transition that is not in them does not
exist. `TABLE_1` is the paper's table of commands, word for word. Boot stubs go by `COMMANDS`, which is that table with
two amendments, because taken literally the paper leaves a managent's environment `configured` without a way on:

- `configure-env` needs a managent that is non-existent, and may start from an `installed` environment. But a managent
  is non-existent only while its environment is not installed (3.3), so the two never come together. Section 3 says
  what is meant: the boot stub "terminates the managent, obtains a new configuration … and re-runs the installation
  code". So the managent may also be deployed or configured (as for `uninstall`), and is removed as the environment
  leaves `installed`. It must not run: a command that ends a program is called `shutdown`.
- Nothing in Table 1 makes Figure 6's transition `install` but `deploy`, and that needs a non-existent environment. So
  what `configure-env` configured could never be installed, and a deployment that failed half way could not be tried
  again. `deploy` therefore also starts from `code loaded` and `configured`. All three of its transitions are made
  anew: the description may have changed since, maybe because it was what made the first try fail.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

EnvState = Literal["non-existent", "code loaded", "configured", "installed"]
"""Of the external environment (Figure 6)."""

LifeState = Literal["non-existent", "deployed", "configured", "active", "passive"]
"""Of the managent itself (Figure 7)."""

Verb = Literal[
    "deploy",
    "configure-env",
    "uninstall",
    "start",
    "shutdown",
    "restart",
    "activate",
    "deactivate",
    "configure-managent",
]
"""The commands of Table 1."""

EnvStep = Literal["load install code", "configure", "install", "uninstall"]
LifeStep = Literal["deploy", "configure", "start", "activate", "deactivate", "shutdown", "remove"]

ENV_STATES: tuple[EnvState, ...] = get_args(EnvState)
LIFE_STATES: tuple[LifeState, ...] = get_args(LifeState)
VERBS: tuple[Verb, ...] = get_args(Verb)
ALIVE: frozenset[LifeState] = frozenset({"active", "passive"})
"""Its program runs."""

ENVIRONMENT: dict[tuple[EnvState, EnvStep], EnvState] = {
    ("non-existent", "load install code"): "code loaded",
    ("code loaded", "load install code"): "code loaded",
    ("configured", "load install code"): "code loaded",
    ("code loaded", "configure"): "configured",
    ("configured", "configure"): "configured",
    ("installed", "configure"): "configured",
    ("configured", "install"): "installed",
    ("non-existent", "uninstall"): "non-existent",
    ("code loaded", "uninstall"): "non-existent",
    ("configured", "uninstall"): "non-existent",
    ("installed", "uninstall"): "non-existent",
}

LIFE: dict[tuple[LifeState, LifeStep], LifeState] = {
    ("non-existent", "deploy"): "deployed",
    ("deployed", "configure"): "configured",
    ("configured", "configure"): "configured",
    ("configured", "start"): "active",
    ("passive", "activate"): "active",
    ("active", "deactivate"): "passive",
    ("active", "shutdown"): "configured",
    ("passive", "shutdown"): "configured",
    ("non-existent", "remove"): "non-existent",
    ("deployed", "remove"): "non-existent",
    ("configured", "remove"): "non-existent",
}


@dataclass(frozen=True, slots=True)
class Row:
    """A command: in which states it is obeyed, the transitions it makes, and where these end (None: where it was)."""

    env: frozenset[EnvState]
    life: frozenset[LifeState]
    env_steps: tuple[EnvStep, ...] = ()
    life_steps: tuple[LifeStep, ...] = ()
    env_after: EnvState | None = None
    life_after: LifeState | None = None


_ANY: frozenset[EnvState] = frozenset(ENV_STATES)
_NO_ENV: frozenset[EnvState] = frozenset({"non-existent"})
_BEGUN: frozenset[EnvState] = frozenset({"code loaded", "configured"})
_INSTALLED: frozenset[EnvState] = frozenset({"installed"})
_NO_LIFE: frozenset[LifeState] = frozenset({"non-existent"})
_STILL: frozenset[LifeState] = frozenset({"deployed", "configured"})

TABLE_1: dict[Verb, Row] = {
    "deploy": Row(
        _NO_ENV,
        _NO_LIFE,
        ("load install code", "configure", "install"),
        ("deploy", "configure", "start"),
        "installed",
        "active",
    ),
    "configure-env": Row(_BEGUN | _INSTALLED, _NO_LIFE, ("configure",), (), "configured", None),
    "uninstall": Row(_ANY, _NO_LIFE | _STILL, ("uninstall",), ("remove",), "non-existent", "non-existent"),
    "start": Row(_INSTALLED, frozenset({"configured"}), (), ("start",), None, "active"),
    "shutdown": Row(_INSTALLED, ALIVE, (), ("shutdown",), None, "configured"),
    "restart": Row(_INSTALLED, ALIVE, (), ("shutdown", "start"), None, "active"),
    "activate": Row(_INSTALLED, frozenset({"passive"}), (), ("activate",), None, "active"),
    "deactivate": Row(_INSTALLED, frozenset({"active"}), (), ("deactivate",), None, "passive"),
    "configure-managent": Row(_INSTALLED, _STILL, (), ("configure",), None, "configured"),
}
"""As the paper has it."""

AMENDED: dict[Verb, Row] = {
    "deploy": Row(
        _NO_ENV | _BEGUN,
        _NO_LIFE,
        ("load install code", "configure", "install"),
        ("deploy", "configure", "start"),
        "installed",
        "active",
    ),
    "configure-env": Row(
        _BEGUN | _INSTALLED, _NO_LIFE | _STILL, ("configure",), ("remove",), "configured", "non-existent"
    ),
}
"""What boot stubs do otherwise, and why: see the top of this module."""

COMMANDS: dict[Verb, Row] = TABLE_1 | AMENDED


def refusal(verb: Verb, env: EnvState, life: LifeState) -> str | None:
    """None when the command may be carried out in these states; else why not: the state needed, the state found."""
    row = COMMANDS[verb]
    if env in row.env and life in row.life:
        return None
    return (
        f"{verb}: expected the environment to be {_either(row.env, ENV_STATES)} and the managent "
        f"{_either(row.life, LIFE_STATES)}, found the environment {env} and the managent {life}"
    )


def _either(states: Collection[str], order: tuple[str, ...]) -> str:
    if len(states) == len(order):
        return "in any state"
    return " or ".join(state for state in order if state in states)
