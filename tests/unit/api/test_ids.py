"""Ids sort by creation and never repeat by much; digests depend on what a body means, not on how it is written."""

from __future__ import annotations

import random
import re

from fabric.api import ids
from fabric.api.schemas import DeploymentRequest


def test_ids_sort_by_the_second_of_their_creation() -> None:
    rng = random.Random(1)
    times = [0, 1, 31, 32, 1_000, 1_700_000_000, 1_700_000_001, 33_000_000_000]
    made = [ids.deployment_id(seconds * 1000, rng) for seconds in times]
    assert made == sorted(made)


def test_an_id_fits_the_pattern_of_records() -> None:
    rng = random.Random(2)
    for seconds in (0, 1_763_000_000, 30_000_000_000):
        assert re.fullmatch(r"d-[0-9a-z]{6,24}", ids.deployment_id(seconds * 1000, rng))


def test_ids_of_one_second_differ() -> None:
    rng = random.Random(3)
    made = {ids.deployment_id(1_763_000_000_000, rng) for _ in range(100)}
    assert len(made) > 98


def test_a_body_means_the_same_with_its_defaults_written_out_and_its_keys_in_another_order() -> None:
    short = DeploymentRequest.model_validate(
        {"image": "web", "flavor": "Large", "count": 5, "labels": {"a": "1", "b": ""}}
    )
    long = DeploymentRequest.model_validate(
        {"count": 5, "policy": "spread", "labels": {"b": "", "a": "1"}, "flavor": "Large", "image": "web"}
    )
    assert ids.body_digest(short) == ids.body_digest(long)


def test_another_count_is_another_body() -> None:
    one = DeploymentRequest.model_validate({"image": "web", "flavor": "Large", "count": 5})
    two = DeploymentRequest.model_validate({"image": "web", "flavor": "Large", "count": 6})
    assert ids.body_digest(one) != ids.body_digest(two)


def test_any_key_becomes_a_name_for_a_znode() -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", ids.key_digest("../../ a key / with \x7f anything"))
    assert ids.key_digest("a") != ids.key_digest("b")
