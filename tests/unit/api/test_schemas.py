"""What a request body may be: strict types, bounds, and one entry for each field that is wrong."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from fabric.api.problems import from_validation
from fabric.api.schemas import MAX_ENVIRONMENT_BYTES, MAX_LABELS, DeploymentRequest, FieldError, ScaleRequest

GOOD: dict[str, Any] = {"image": "web", "flavor": "Large", "count": 50}


def wrong(**changes: Any) -> list[FieldError]:
    with pytest.raises(ValidationError) as caught:
        DeploymentRequest.model_validate({**GOOD, **changes})
    return list(from_validation(caught.value.errors()).errors)


def test_the_defaults_are_those_of_the_documentation() -> None:
    request = DeploymentRequest.model_validate(GOOD)
    assert (request.policy, request.restart, request.min_count, request.name) == ("spread", "always", None, None)
    assert (request.max_per_node, request.max_per_rack) == (0, 0)
    assert request.labels == {}
    assert request.environment == {}


@pytest.mark.parametrize("count", [1, 10_000])
def test_the_ends_of_the_range_are_good(count: int) -> None:
    assert DeploymentRequest.model_validate({**GOOD, "count": count}).count == count


@pytest.mark.parametrize(
    ("count", "expected", "found"),
    [
        (0, "at least 1", "0"),
        (-3, "at least 1", "-3"),
        (10_001, "at most 10000", "10001"),
        ("12", "a whole number", '"12"'),
        (True, "a whole number", "true"),
        (1.5, "a whole number", "1.5"),
        (None, "a whole number", "null"),
        ([5], "a whole number", "[5]"),
    ],
)
def test_a_wrong_count_is_named_with_what_was_expected_and_found(count: object, expected: str, found: str) -> None:
    assert wrong(count=count) == [FieldError(field="count", expected=expected, found=found)]


def test_every_wrong_field_has_an_entry_of_its_own() -> None:
    errors = wrong(image="Web!", count=0, policy="fast", colour="red")
    assert [error.field for error in errors] == ["image", "count", "policy", "colour"]
    assert errors[2] == FieldError(field="policy", expected="one of 'spread' or 'pack'", found='"fast"')
    assert errors[3].expected == "no such field"


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ValidationError) as caught:
        DeploymentRequest.model_validate({"flavor": "Large", "count": 1})
    assert from_validation(caught.value.errors()).errors == (
        FieldError(field="image", expected="a value", found="nothing"),
    )


def test_min_count_is_at_most_count() -> None:
    assert wrong(min_count=51) == [FieldError(field="min_count", expected="at most count, which is 50", found="51")]
    assert DeploymentRequest.model_validate({**GOOD, "min_count": 50}).min_count == 50


@pytest.mark.parametrize("name", ["a", "web-1.2_x", "0" * 64])
def test_good_names(name: str) -> None:
    assert DeploymentRequest.model_validate({**GOOD, "image": name, "name": name}).name == name


@pytest.mark.parametrize("name", ["", "-web", "web-", "We", "a/b", "..", "a b", "web\n", "é", "0" * 65])
def test_bad_names(name: str) -> None:
    assert [error.field for error in wrong(image=name)] == ["image"]


def test_labels_are_bounded() -> None:
    assert wrong(labels={f"k{number}": "" for number in range(MAX_LABELS + 1)})[0].field == "labels"
    assert wrong(labels={"k": "v" * 257})[0].field == "labels.k"
    assert wrong(labels={"k": 1})[0] == FieldError(field="labels.k", expected="text", found="1")


def test_the_environment_is_bounded_as_a_whole() -> None:
    some = {f"V{number}": "v" * 2000 for number in range(5)}
    [error] = wrong(environment=some)
    assert error.field == "environment"
    assert str(MAX_ENVIRONMENT_BYTES) in error.expected
    assert error.found == f"{sum(len(name) + len(value) for name, value in some.items())} bytes"


@pytest.mark.parametrize("name", ["1A", "A-B", "", "A B", "A=B"])
def test_a_variable_has_a_name_that_a_shell_takes(name: str) -> None:
    assert wrong(environment={name: "x"})[0].field.startswith("environment")


def test_a_variable_must_not_be_one_of_ours() -> None:
    assert wrong(environment={"FABRIC_ORDINAL": "1"})[0].found == '"FABRIC_ORDINAL"'


def test_a_value_with_a_zero_byte_cannot_be_in_an_environment() -> None:
    assert wrong(environment={"A": "x\0y"})[0].field == "environment.A"


def test_scaling_to_nothing_is_no_scaling() -> None:
    with pytest.raises(ValidationError):
        ScaleRequest.model_validate({"count": 0})


def test_what_was_found_is_cut_to_a_bound() -> None:
    assert len(wrong(image="X" * 100_000)[0].found) <= 120


def test_a_cut_off_node_must_have_stopped_its_own_before_they_run_elsewhere() -> None:
    request = DeploymentRequest.model_validate(GOOD)
    assert (request.lost_after_s, request.stop_after_s, request.exclusive) == (10, 0, False)
    assert DeploymentRequest.model_validate({**GOOD, "stop_after_s": 5}).stop_after_s == 5
    expected = "at least 11: stop_after_s, and 5 for the stopping"
    assert wrong(stop_after_s=6) == [FieldError(field="lost_after_s", expected=expected, found="10")]
    assert DeploymentRequest.model_validate({**GOOD, "stop_after_s": 6, "lost_after_s": 11}).lost_after_s == 11
    assert DeploymentRequest.model_validate({**GOOD, "lost_after_s": 0}).lost_after_s == 0, "no rule when they run on"


@pytest.mark.parametrize("field", ["lost_after_s", "stop_after_s"])
@pytest.mark.parametrize("value", [-1, 604_801, "10", 1.5])
def test_waits_for_lost_nodes_are_bounded(field: str, value: object) -> None:
    assert [error.field for error in wrong(**{field: value})] == [field]
