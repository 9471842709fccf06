"""The option that rewrites the golden transcripts."""

from __future__ import annotations

import pytest

REWRITE = "--rewrite-golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(REWRITE, action="store_true", help="write the scenarios' transcripts anew: tests/sim/golden/*.txt")


@pytest.fixture
def rewrites_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption(REWRITE, default=False))
