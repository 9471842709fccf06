"""What a run came to: the promises, the figures, and what was done to the fabric, as a table and as JSON."""

from __future__ import annotations

import sys

import msgspec
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fabric.chaos.figures import FIGURES, Figures
from fabric.chaos.script import Expect
from fabric.chaos.stage import Deed
from fabric.chaos.verdict import PROMISES, Finding, Verdict

COLOURS = {"held": "green", "broken": "red", "not tried": "dim"}
OUTPUT_WIDTH = 160


class Scorecard(msgspec.Struct, frozen=True):
    """`text`: the scenario as lines that it can be run again from; `error`: why the run could not be made or judged."""

    scenario: str
    text: str
    holds: bool
    verdict: Verdict
    figures: Figures
    deeds: tuple[Deed, ...]
    error: str = ""


def expected(expects: tuple[Expect, ...], found: Figures) -> list[Finding]:
    """What the scenario expects of the figures, and is not so."""
    wrong = []
    for one in expects:
        value = float(getattr(found, one.figure))
        good = {"=": value == one.value, "<": value < one.value, ">": value > one.value}[one.sign]
        if not good:
            text = f"expected {one.figure} {one.sign} {one.value:g}, found {value:g}"
            wrong.append(Finding("expected", found.ran_s, text))
    return wrong


def unknown_figures(expects: tuple[Expect, ...]) -> list[str]:
    return [one.figure for one in expects if one.figure not in FIGURES]


def show(card: Scorecard, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(card), indent=2).decode() + "\n")
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else OUTPUT_WIDTH)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("PROMISE", "", "WHAT IT SAYS"):
        table.add_column(heading)
    for one in card.verdict.judged:
        table.add_row(one.promise, f"[{COLOURS[one.grade]}]{one.grade}[/]", PROMISES[one.promise])
    console.print(table)
    for one in card.verdict.judged:
        for finding in one.first:
            console.print(f"  {finding.at_s:7.2f} s  {one.promise}: {finding.text}", markup=False, soft_wrap=True)
        if one.found > len(one.first):
            console.print(f"             {one.promise}: and {one.found - len(one.first)} more")
    console.print()
    for line in told(card.figures):
        console.print(line, markup=False, soft_wrap=True)
    for deed in card.deeds:
        if deed.skipped:
            console.print(f"not done: {deed.verb} {' '.join(deed.names)}: {deed.skipped}", markup=False, soft_wrap=True)
    if card.error:
        console.print(f"[red]{escape(card.error)}[/]", soft_wrap=True)
    console.print(f"{card.scenario}: {'[green]all promises held[/]' if card.holds else '[red]broken[/]'}")


def told(found: Figures) -> list[str]:
    """The figures as sentences."""
    lines = [
        f"requests   {found.requests} in {found.ran_s:.0f} s: {found.accepted} accepted, {found.refused} refused, "
        f"{found.lost} lost, {found.failed} failed ({found.with_room} though there was room); "
        f"{found.tried_again} attempts were repeated",
        f"answers    after {_times(found.wait_p50_s, found.wait_p95_s, found.wait_max_s)}",
        f"at rest    after {_times(found.rest_p50_s, found.rest_p95_s, found.rest_max_s)}",
        f"instances  {found.instances} seen, at most {found.most} at a time: {found.doubles} doubled, "
        f"{found.orphans} orphans left",
        f"faults     {found.faults} done, {found.not_done} not; all at rest {found.settle_s:.1f} s after the last",
    ]
    if found.redundancy_s:
        lines.append(f"images     under-redundant for {found.redundancy_s:.1f} s at most")
    return lines


def _times(*values: float) -> str:
    return ", ".join(f"{value:.2f} s ({name})" for name, value in zip(("median", "95 %", "worst"), values, strict=True))
