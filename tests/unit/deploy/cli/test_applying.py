"""What `fabric managent apply` does when the directory has everything as it is described."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from deploy.cli.applying import apply
from deploy.plan import Plan
from deploy.sets import Sets
from deploy.top import Result
from fabric.cli.exits import Exit

DONE = Plan("http://r/", ("/r",), "g1", ("/r",), (), 1)


class Top:
    applied: dict[str, Any] | None = None

    async def plan(self, *what: object, **more: object) -> Plan:
        return DONE

    async def apply(self, plan: Plan, **how: Any) -> Result:
        self.applied = how
        return Result(Sets(active=("/r",)), 1, 1)


@pytest.mark.parametrize(("flag", "looks"), [("", False), ("recheck", True), ("resume", True)])
def test_whoever_resumes_wants_more_than_the_directory_s_word(
    monkeypatch: pytest.MonkeyPatch, flag: str, looks: bool
) -> None:
    """Its rows are as old as the last word of an initiator that may be dead."""
    top = Top()

    @asynccontextmanager
    async def opened(*where: object, **more: object) -> AsyncIterator[Top]:
        yield top

    monkeypatch.setattr("deploy.cli.applying.Top.open", opened)
    flags = dict.fromkeys(("only", "resume", "recheck", "keep", "yes", "take_over", "pause", "stay"), False)
    if flag:
        flags[flag] = True
    args = Namespace(
        directory="127.0.0.1:1",
        dir=None,
        key_file=None,
        repository="http://r/",
        root=[],
        allow_root=[],
        format="table",
        **flags,
    )
    args.wave = args.max_failed = None
    assert apply(args) == Exit.DONE
    assert (top.applied is not None) == looks
