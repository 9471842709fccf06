"""The cache of contents on a disk that is full, or that somebody else tidies."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from deploy.repository.content import ContentCache
from deploy.repository.digests import digest_of
from deploy.resolved import Unresolved
from tests.unit.deploy.repository.world import described, run, serving_at, stack


def full(*args: Any, **more: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_takes_no_new_file_is_told_and_may_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ContentCache(tmp_path, 1000)
    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(Unresolved, match=f"{tmp_path}: the disk refused a new file: No space left on device") as error:
        cache.incoming("")
    assert error.value.again


@pytest.mark.parametrize("call", ["chmod", "rename"])
def test_a_disk_that_does_not_let_a_content_take_its_name_is_told_and_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    cache = ContentCache(tmp_path, 1000)
    incoming = cache.incoming("")
    incoming.write(b"x")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(Unresolved, match="the disk refused to name it: No space left on device") as error:
        incoming.commit("http://x/a")
    assert error.value.again
    incoming.abort()
    assert [one.name for one in tmp_path.iterdir()] == ["lock"]
    assert cache.path(digest_of(b"x")) is None
    assert cache.bytes == 0


def test_a_content_that_somebody_removed_is_fetched_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving_at(described(tmp_path / "d")) as served, stack(tmp_path / "cache") as all:
            first = (await all.resolve("/a/b", served.url)).code[0].file
            first.unlink()
            again = await all.resolve("/a/b", served.url)
            assert again.code[0].file.read_bytes() == b"class Agent: ...\n"

    run(main())
