"""A server that speaks the API's schemas, and the command line in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from fabric.cli.main import main
from tests.unit.cli.api_server import ApiServer, serve


@dataclass(frozen=True, slots=True)
class Ended:
    code: int
    out: str
    err: str


Fabric = Callable[..., Ended]


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with serve() as server:
        yield server


@pytest.fixture
def fabric(api: ApiServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Fabric:
    """Runs `fabric ARGUMENTS` against the server of the test."""
    monkeypatch.setenv("FABRIC_API", api.url)

    def run(*arguments: str) -> Ended:
        code = main(arguments)
        captured = capsys.readouterr()
        return Ended(int(code), captured.out, captured.err)

    return run
