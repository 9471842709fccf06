"""The demo's summary: a few tables for people, or all of it as JSON, on standard output."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from fabric.ordinals import format_ordinals
from fabric.roles.trace import Run

if TYPE_CHECKING:
    from fabric.local.demo import Asked, Outcome

OUTPUT_WIDTH = 160


def show(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(outcome), indent=2).decode() + "\n")
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else OUTPUT_WIDTH)
    first, second, image = outcome.first, outcome.second, outcome.image
    console.print(f"\n[bold]where the {len(first.instances)} instances of {first.deployment} ran[/]")
    console.print(_places(first))
    fetched = sum((Counter(node.fetch.bytes_by_holder) for node in first.run.nodes if node.fetch), Counter[str]())
    console.print(f"\n[bold]image {image.name}[/], {image.size / 2**20:.1f} MiB, {image.digest[:19]}…")
    for holder in image.holders:
        console.print(f"  holder {holder}: {fetched[holder] / 2**20:.0f} MiB fetched from it")
    passed_on = fetched.total() - sum(fetched[holder] for holder in image.holders)
    if passed_on:
        console.print(f"  {passed_on / 2**20:.0f} MiB passed on by nodes to others of their racks")
    for title, asked in (("the request, step by step", first), ("the same again, the image on the nodes", second)):
        console.print(f"\n[bold]{title}[/] ({asked.deployment}, coordinated by {asked.run.coordinator})")
        console.print(_steps(asked.run))
    marks = outcome.fabric.marks_ms
    began = marks["zookeeper_started"]
    console.print("\n[bold]in all[/]")
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in (
        ("ZooKeeper ready after", f"{(marks['zookeeper_ready'] - began) / 1000:.2f} s"),
        (f"{len(outcome.fabric.nodes)} agents registered after", f"{(marks['registered'] - began) / 1000:.2f} s"),
        ("leaders elected after", f"{(marks['elected'] - began) / 1000:.2f} s"),
        ("image published in", f"{image.push_s:.2f} s"),
        ("request, call to all running, image not yet on the nodes", f"{first.request_s:.2f} s"),
        ("request, call to all running, image on the nodes", f"{second.request_s:.2f} s"),
        ("from starting ZooKeeper to all running", f"{outcome.total_s:.2f} s"),
        ("processes then", str(outcome.processes)),
        ("everything taken down in", f"{outcome.down_s:.2f} s"),
    ):
        table.add_row(name, value)
    console.print(table)
    count = len(first.instances) + len(second.instances)
    console.print(f"\n[green]all {count} instances ran, each its own process, and answered with its own identity[/]")


def _places(asked: Asked) -> Table:
    by_node: dict[tuple[str, str], list[int]] = {}
    for one in asked.instances:
        by_node.setdefault((one.rack, one.node), []).append(one.ordinal)
    by_rack = Counter(one.rack for one in asked.instances)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("RACK", "INSTANCES", "NODES: ORDINALS"):
        table.add_column(heading, justify="right" if heading == "INSTANCES" else "left")
    for rack, count in sorted(by_rack.items()):
        nodes = [f"{node}: {format_ordinals(found)}" for (at, node), found in sorted(by_node.items()) if at == rack]
        table.add_row(rack, str(count), "   ".join(nodes))
    return table


def _steps(run: Run) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("STEP", "AFTER", "TOOK", "WHAT", "DETAIL"):
        table.add_column(heading, justify="right" if heading in ("STEP", "AFTER", "TOOK") else "left")
    for span in sorted(run.spans, key=lambda span: (span.step, span.after_ms)):
        table.add_row(str(span.step), f"{span.after_ms} ms", f"{span.took_ms} ms", span.name, span.detail)
    spent = f"{run.messages} messages; ZooKeeper: {run.zookeeper_writes} writes, {run.zookeeper_reads} reads"
    table.add_row("", f"{run.took_ms} ms", "", run.outcome, spent)
    return table
