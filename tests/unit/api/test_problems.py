"""The table of problems is part of the interface: slugs are unique and fit for URNs, and every one has its status."""

from __future__ import annotations

import re

import pytest

from fabric.api.problems import (
    KINDS,
    NOT_JSON,
    TOO_LARGE,
    UNAVAILABLE,
    Kind,
    documented,
    found_text,
    from_status,
    invalid,
    unavailable,
)
from fabric.api.pushing import expected_digest

HEX = "0123456789abcdef" * 4


def test_slugs_are_unique() -> None:
    assert len({kind.slug for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.slug)
def test_a_kind_is_fit_for_a_urn(kind: Kind) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", kind.slug)
    assert 400 <= kind.status < 600


def test_unavailable_says_when_to_come_back() -> None:
    error = unavailable("no leader", 7)
    assert error.status_code == 503
    assert error.headers == {"Retry-After": "7"}


def test_documented_problems_are_grouped_by_status() -> None:
    found = documented(NOT_JSON, TOO_LARGE, UNAVAILABLE)
    assert set(found) == {400, 413, 503}
    assert "application/problem+json" in found[400]["content"]


def test_a_bare_status_of_the_framework_becomes_a_problem() -> None:
    assert from_status(404, "x").kind.slug == "not-found"
    assert from_status(418, "x").kind.title == "I'm a Teapot"
    assert from_status(599, "x").kind.title == "Error"


def test_what_was_found_is_bounded_and_printable() -> None:
    assert found_text("a\nb") == '"a\\nb"'
    assert len(found_text(["x" * 1000])) == 120
    assert found_text({1, 2}).startswith("{")


# --- digests given with a push ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [f"sha256:{HEX}", f"b3:{HEX}", f"  SHA256:{HEX.upper()} "])
def test_digests_as_this_fabric_writes_them(text: str) -> None:
    assert expected_digest(text, None) == text.strip().lower()
    assert expected_digest(None, text) == text.strip().lower()


def test_a_digest_as_the_standard_header_has_it() -> None:
    assert expected_digest("sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:", None) == (
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )


def test_no_digest_is_none() -> None:
    assert expected_digest(None, None) is None


@pytest.mark.parametrize("text", ["sha256:abc", "md5:" + HEX[:32], "sha-256=:short:", HEX, "sha256:" + "g" * 64])
def test_a_digest_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(type(invalid("x", "y", "z"))) as caught:
        expected_digest(text, None)
    assert caught.value.errors[0].field == "Content-Digest"


def test_two_digests_that_differ_are_refused() -> None:
    with pytest.raises(type(invalid("x", "y", "z"))):
        expected_digest(f"sha256:{HEX}", f"b3:{HEX}")
