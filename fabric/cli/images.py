"""image push, list, show, rm."""

from __future__ import annotations

import os
import stat
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from typing import BinaryIO

from fabric.cli import output, views
from fabric.cli.client import Api, segment
from fabric.cli.exits import Exit, Failure

READ_BYTES = 1 << 20
LINE_EVERY_S = 2.0
"""Between lines of progress where there is no terminal."""


def push(args: Namespace) -> int:
    with Api.of(args) as api, output.Progress() as progress:
        if args.file == "-":
            answer = api.upload(args.name, _pieces(sys.stdin.buffer, None, args.name, progress), None, args.digest)
        else:
            try:
                source = open(args.file, "rb")  # noqa: SIM115  (closed below)
            except OSError as error:
                raise Failure(f"{args.file}: expected a file to read, found: {error.strerror}") from error
            with source:
                size = _size(args.file, source)
                answer = api.upload(args.name, _pieces(source, size, args.name, progress), size, args.digest)
    if output.wants_json(args):
        output.emit(answer)
    else:
        image = answer.read(views.Image)
        output.line(f"{image.name}: {output.size(image.size)} {image.kind}, held by {' and '.join(image.holders)}")
    return Exit.DONE


def listing(args: Namespace) -> int:
    with Api.of(args) as api:
        answer = api.pages("/v1/images", args.limit)
    if output.wants_json(args):
        output.emit(answer)
        return Exit.DONE
    page = answer.read(views.Page[views.Image])
    output.table(
        ("NAME", ">SIZE", "KIND", "PUSHED", "HOLDERS", "DIGEST"),
        [
            (one.name, output.size(one.size), one.kind, output.age(one.pushed), ", ".join(one.holders), one.digest[:19])
            for one in page.items
        ],
    )
    output.more(page.next)
    return Exit.DONE


def show(args: Namespace) -> int:
    with Api.of(args) as api:
        answer = api.get(f"/v1/images/{segment(args.name)}")
    if output.wants_json(args):
        output.emit(answer)
        return Exit.DONE
    image = answer.read(views.Image)
    output.pairs(
        [
            ("name", image.name),
            ("kind", image.kind),
            ("size", f"{output.size(image.size)} ({image.size} bytes)"),
            ("digest", image.digest),
            ("content", image.content),
            ("pushed", f"{image.pushed} ({output.age(image.pushed)} ago)"),
            ("holders now", ", ".join(image.holders) or output.Styled("none", "red")),
            ("redundant", "yes" if image.redundant else output.Styled("no: not in two racks", "red")),
        ]
    )
    output.silent("storage nodes", image.silent)
    return Exit.DONE


def remove(args: Namespace) -> int:
    with Api.of(args) as api:
        answer = api.delete(f"/v1/images/{segment(args.name)}", {"force": "true"} if args.force else None)
    if output.wants_json(args):
        output.emit(answer)
        return Exit.DONE
    image = answer.read(views.ImageDeleted)
    kept = f"; its content stays for {', '.join(image.shared_with)}" if image.shared_with else ""
    output.line(f"{image.name} is removed; {output.size(image.freed_bytes)} freed{kept}")
    return Exit.DONE


def _size(path: str, source: BinaryIO) -> int | None:
    """None for what has no size before it is read, such as a pipe."""
    about = os.fstat(source.fileno())
    if stat.S_ISREG(about.st_mode) and about.st_size == 0:
        raise Failure(f"{path}: expected an image, found an empty file")
    return about.st_size if stat.S_ISREG(about.st_mode) else None


def _pieces(source: BinaryIO, size: int | None, name: str, progress: output.Progress) -> Iterator[bytes]:
    """The content, piece by piece, telling how much is on its way. A file that grows or shrinks meanwhile is an error:
    the API was told its size."""
    sent = 0
    told_at = time.monotonic()
    while piece := source.read(READ_BYTES):
        sent += len(piece)
        if size is not None and sent > size:
            raise Failure(f"{name}: expected {size} bytes, found more: the file grew while it was read")
        yield piece
        if progress.live or time.monotonic() - told_at >= LINE_EVERY_S:
            told_at = time.monotonic()
            of = f" of {output.size(size)}" if size else ""
            progress.show(f"{name}: {output.size(sent)}{of} sent", sent, size or 0)
    if size is not None and sent < size:
        raise Failure(f"{name}: expected {size} bytes, found {sent}: the file shrank while it was read")
    progress.show(f"{name}: {output.size(sent)} sent, waiting for two holders", sent, size or sent)
