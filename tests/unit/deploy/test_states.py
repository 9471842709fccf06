"""Figures 6 and 7 and Table 1: every command in every pair of states, by the paper's table and by ours."""

from __future__ import annotations

import itertools

import pytest

from deploy.states import AMENDED, COMMANDS, ENV_STATES, ENVIRONMENT, LIFE, LIFE_STATES, TABLE_1, VERBS, Row, refusal

PAIRS = list(itertools.product(ENV_STATES, LIFE_STATES))
STILL = {"deployed", "configured"}
ALIVE = {"active", "passive"}

# Table 1, once more and by hand: verb -> (environment's condition, managent's condition), None for "any".
BY_HAND: dict[str, tuple[set[str] | None, set[str]]] = {
    "deploy": ({"non-existent", "code loaded", "configured"}, {"non-existent"}),
    "configure-env": ({"code loaded", "configured", "installed"}, {"non-existent", *STILL}),
    "uninstall": (None, {"non-existent", *STILL}),
    "start": ({"installed"}, {"configured"}),
    "shutdown": ({"installed"}, ALIVE),
    "restart": ({"installed"}, ALIVE),
    "activate": ({"installed"}, {"passive"}),
    "deactivate": ({"installed"}, {"active"}),
    "configure-managent": ({"installed"}, STILL),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("env", "life"), PAIRS)
def test_every_command_in_every_pair_of_states(verb: str, env: str, life: str) -> None:
    envs, lives = BY_HAND[verb]
    allowed = (envs is None or env in envs) and life in lives
    reason = refusal(verb, env, life)  # type: ignore[arg-type]
    if allowed:
        assert reason is None
    else:
        assert reason is not None
        assert reason.startswith(f"{verb}: expected the environment to be ")
        assert reason.endswith(f"found the environment {env} and the managent {life}")
        needed = reason.partition(", found")[0]
        assert all(state in needed for state in (*(envs or ()), *lives))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("table", [TABLE_1, COMMANDS], ids=["paper", "ours"])
def test_steps_lead_from_every_condition_to_the_result(table: dict[str, Row], verb: str) -> None:
    row = table[verb]
    for env, life in itertools.product(sorted(row.env), sorted(row.life)):
        end_env, end_life = env, life
        for env_step in row.env_steps:
            end_env = ENVIRONMENT[end_env, env_step]
        for life_step in row.life_steps:
            end_life = LIFE[end_life, life_step]
        assert end_env == (row.env_after or env)
        assert end_life == (row.life_after or life)


def test_the_amendments_only_widen() -> None:
    assert set(AMENDED) == {"deploy", "configure-env"}
    for verb, row in AMENDED.items():
        assert TABLE_1[verb].env <= row.env
        assert TABLE_1[verb].life <= row.life
        assert TABLE_1[verb].env_after == row.env_after


def test_by_the_paper_alone_a_configured_environment_is_a_dead_end() -> None:
    """Why there are amendments: only `uninstall` leads out of it, and a reconfiguration never gets into it."""
    out = [verb for verb, row in TABLE_1.items() if "configured" in row.env and row.env_after != "configured"]
    assert out == ["uninstall"]
    possible = {(env, life) for env, life in PAIRS if (env == "installed") == (life != "non-existent")}
    row = TABLE_1["configure-env"]
    assert not [1 for env, life in possible if env == "installed" and env in row.env and life in row.life]


def test_any_state_is_called_so() -> None:
    assert "environment to be in any state and the managent non-existent or deployed or configured" in (
        refusal("uninstall", "installed", "active") or ""
    )
