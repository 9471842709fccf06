"""What people and programs see.

Standard output carries what was asked for: a table, or JSON exactly as the API said it. Progress and remarks go to
standard error, so that `fabric list --format json | jq` and `fabric deploy --wait > file` hold what they should. On a
terminal progress is one live line; elsewhere it is plain lines, one for each change.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal, Self

from rich import box
from rich.console import Console
from rich.live import Live
from rich.markup import escape, render
from rich.table import Table

from fabric.cli.client import Answer
from fabric.resources import Resources

PIPE_WIDTH = 200
"""Columns where no terminal says how many it has: tables are not folded for a screen that is not there."""
FOLDED_TO = 16
"""Characters: no column is folded to less, if there is any other way."""
GAP = 2
"""Characters between two columns."""

STATES = {
    "running": "green",
    "failed": "red",
    "exited": "red",
    "missing": "red",
    "unknown": "yellow",
    "backoff": "yellow",
    "parked": "yellow",
    "deleted": "dim",
}


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """rich would exit with 1; `main` knows that it is no error."""
        raise BrokenPipeError


def console() -> Console:
    """On standard output; made anew each time, so that tests and pipes may have changed it."""
    return _Console(highlight=False, soft_wrap=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def _print(shown: Table) -> None:
    """Rows are as wide as their table; where they are kept in a file, the blanks at their ends are not."""
    to = console()
    if to.is_terminal:
        to.print(shown)
        return
    with to.capture() as captured:
        to.print(shown)
    sys.stdout.write("".join(f"{row.rstrip()}\n" for row in captured.get().splitlines()))


def remark(text: str) -> None:
    """A line for people beside the output, on standard error."""
    print(text, file=sys.stderr, flush=True)


def wants_json(args: Namespace) -> bool:
    return bool(args.format == "json")


def emit(answer: Answer) -> None:
    """The API's answer as it is, and a newline."""
    sys.stdout.write(answer.body.decode("utf-8", "replace").rstrip("\n") + "\n")


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], spare: Sequence[str] = ()) -> None:
    """A heading that begins with ">" is that of a column of numbers; these and the first column are never folded.
    `spare`: headings to do without on a narrow screen, the first of them first. No rows: the headings alone."""
    cells = [[cell.markup if isinstance(cell, Styled) else escape(str(cell)) for cell in row] for row in rows]
    columns = [_Column.of(heading, [row[at] for row in cells], at) for at, heading in enumerate(headings)]
    kept = _fitting(columns, console().width, spare)
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    shown.padding = (0, 1, 0, 0)
    for one in kept:
        side: Literal["left", "right"] = "right" if one.numbers else "left"
        shown.add_column(one.heading, justify=side, no_wrap=not one.folds, min_width=one.least, overflow="fold")
    for row in cells:
        shown.add_row(*(row[one.at] for one in kept))
    _print(shown)
    if left := [one.heading for one in columns if one not in kept]:
        remark(f"not shown, for want of width: {', '.join(left)} (all: --format json)")


@dataclass(frozen=True, slots=True)
class _Column:
    """`least`: the characters without which it can't be read."""

    at: int
    heading: str
    numbers: bool
    folds: bool
    least: int

    @classmethod
    def of(cls, heading: str, cells: Sequence[str], at: int) -> _Column:
        numbers = heading.startswith(">")
        name = heading.removeprefix(">")
        widest = max(len(name), *(render(cell).cell_len for cell in cells), 0)
        folds = at > 0 and not numbers
        return cls(at, name, numbers, folds, min(widest, FOLDED_TO) if folds else widest)


def _fitting(columns: Sequence[_Column], width: int, spare: Sequence[str]) -> list[_Column]:
    kept = list(columns)
    for heading in spare:
        if sum(one.least + GAP for one in kept) - GAP <= width:
            break
        kept = [one for one in kept if one.heading != heading]
    return kept


def pairs(rows: Iterable[tuple[str, object]]) -> None:
    """Names and values below each other; those without a value are left out."""
    shown = Table(box=None, show_header=False, pad_edge=False)
    shown.add_column(style="dim", no_wrap=True)
    shown.add_column(overflow="fold")
    for name, value in rows:
        if value not in ("", None):
            shown.add_row(name, value.markup if isinstance(value, Styled) else escape(str(value)))
    _print(shown)


def more(next_page: str | None) -> None:
    if next_page is not None:
        remark("there are more: --limit says how many to list")


def silent(what: str, names: Sequence[str]) -> None:
    """Who was asked and did not answer: what is listed may be less than there is."""
    if names:
        remark(f"{what} that did not answer: {', '.join(names)}")


def line(text: str = "", style: str = "") -> None:
    console().print(escape(text), style=style or None, soft_wrap=True)


class Styled:
    """A cell whose colour says something too."""

    __slots__ = ("markup",)

    def __init__(self, text: str, style: str) -> None:
        self.markup = f"[{style}]{escape(text)}[/]" if style else escape(text)


def state(name: str) -> Styled:
    return Styled(name, STATES.get(name, ""))


# --- words for values ------------------------------------------------------------------------------------------------


def counted(number: int, noun: str) -> str:
    """1 node, 2 nodes."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def size(count: float) -> str:
    """Bytes: 64.0 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def resources(amount: Resources) -> str:
    memory, disk = size(amount.memory_mib * 2**20), size(amount.disk_mib * 2**20)
    return f"{amount.vcpus} vcpus, {memory} memory, {disk} disk"


def free_of(free: Resources, total: Resources) -> tuple[str, str, str]:
    """What is free of each dimension, as three cells: vcpus, memory, disk."""
    return (
        f"{free.vcpus}/{total.vcpus}",
        _part(free.memory_mib, total.memory_mib),
        _part(free.disk_mib, total.disk_mib),
    )


def _part(free_mib: int, total_mib: int) -> str:
    """Both in the unit that suits the total: 3.9/4.0 TiB."""
    words = size(total_mib * 2**20).split()
    factor = float(words[0]) / total_mib if total_mib else 0.0
    digits = 1 if "." in words[0] else 0
    return f"{free_mib * factor:.{digits}f}/{' '.join(words)}"


def millis(value: float) -> str:
    """Milliseconds: 0.4 ms, 12 ms, 1.25 s."""
    if value >= 1000:
        return f"{value / 1000:.2f} s"
    return f"{value:.0f} ms" if value >= 10 or value == int(value) else f"{value:.1f} ms"


def seconds(value: float) -> str:
    """In the largest unit that leaves a whole number: 45 s, 10 m, 36 h, 7 d."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if value >= length and value % length == 0:
            return f"{value // length:.0f} {unit}"
    return f"{value:.0f} s"


def age(moment: str | None) -> str:
    """How long ago an RFC 3339 moment was: 12s, 4m, 3h, 9d."""
    return _short((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()) if moment else "-"


def until(moment: str) -> str:
    """How far in the future an RFC 3339 moment is: 12s, 4m, 3h, 9d."""
    return _short((datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds())


def _short(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f}{unit}"
    return f"{max(0, seconds):.0f}s"


# --- progress --------------------------------------------------------------------------------------------------------


class Progress:
    """One live line on a terminal, plain lines elsewhere; on standard error. `show` may be called often: a text is
    written when it changed."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._live = (
            Live(console=self._console, transient=True, refresh_per_second=8) if self._console.is_terminal else None
        )
        self._last = ""

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    @property
    def live(self) -> bool:
        return self._live is not None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Off the screen, for a question to a person: while it is on, a line without an end is held back."""
        if self._live:
            self._live.stop()
        try:
            yield
        finally:
            if self._live:
                self._live.start()

    def show(self, text: str, done: int = 0, total: int = 0) -> None:
        """`done` of `total` draws a bar on a terminal; elsewhere the text is to say it."""
        if self._live:
            self._live.update(f"{bar(done, total)}{escape(text)}")
        elif text != self._last:
            remark(text)
        self._last = text


def bar(done: int, total: int, width: int = 30) -> str:
    if total <= 0:
        return ""
    filled = min(width, width * done // total)
    return f"[green]{'━' * filled}[/][dim]{'━' * (width - filled)}[/] "
