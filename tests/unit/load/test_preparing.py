"""What is before a run: an image of any size, and answers that are not those of a fabric's API."""

from __future__ import annotations

import asyncio
import io
import random
import tarfile

import pytest

from fabric.load import image
from fabric.load.asking import said
from fabric.load.http import Answer, Connections
from fabric.load.plan import Plan
from fabric.load.preparing import CannotRun, prepared
from tests.unit.load.api import fake_api


@pytest.mark.parametrize("content", [{"items": 5}, {"items": [{"name": 1}]}, {"found": []}])
def test_another_server_than_a_fabric_s_api_is_told_from_one(content: dict[str, object]) -> None:
    async def main() -> None:
        async with Connections(api.url) as connections:
            await prepared(connections, Plan("Small", 1, 1.0, 0.0), "any")

    with fake_api() as api:
        api.refuse = lambda method, path, n: (200, {}, content)
        with pytest.raises(CannotRun, match=r"GET /v1/flavors.*: expected an answer of a fabric's API"):
            asyncio.run(main())


def test_an_image_is_drawn_in_pieces_as_randbytes_has_a_limit() -> None:
    class Drawn(random.Random):
        def randbytes(self, n: int) -> bytes:
            assert n <= image.PIECE_BYTES
            return super().randbytes(n)

    size = 2 * image.PIECE_BYTES + 5
    with tarfile.open(fileobj=io.BytesIO(image.build(size, Drawn(1)))) as archive:
        assert {one.name: one.size for one in archive}["content.bin"] == size


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<html>\n<h1>Bad Gateway</h1>\n</html>", "and text/html, no problem details"),
        (b'{"title": "no room", "detail": "no room\\nanywhere"}', "no room anywhere"),
        (b'{"title": "no room"}', "no room"),
    ],
)
def test_what_an_answer_says_is_one_line(content: bytes, says: str) -> None:
    assert said(Answer(502, {"content-type": "text/html"}, content)) == says
