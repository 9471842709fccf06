"""What `fabric bootstub install` shows while it runs and in the end, and its exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict

from deploy.ssh.bundle import Bundle
from deploy.ssh.command import SshSettings
from deploy.ssh.fleet import BAD, RESULTS, Fleet, FleetSettings, Outcome, Registered, Result, Unregistered
from deploy.ssh.host.orders import Order
from deploy.ssh.hosts import Host
from deploy.ssh.registry import registry, unregistry
from fabric.cli.exits import Exit, Failure
from fabric.cli.output import Progress, Styled, counted, line, millis, table
from zk.connect import Unreachable

STYLES: dict[Result, str] = {
    "installed": "green",
    "removed": "green",
    "differs": "yellow",
    "failed": "red",
    "unreachable": "red",
    "interrupted": "red",
}


async def visit(
    hosts: Sequence[Host],
    order: Order,
    opening: bytes,
    bundle: Bundle | None,
    settings: FleetSettings,
    ssh: SshSettings,
) -> tuple[Outcome, ...]:
    """Carry the order out on all hosts, and show how it goes. Raises Failure when nothing can be begun."""
    async with AsyncExitStack() as stack:
        registered: Registered | None = None
        unregistered: Unregistered | None = None
        if order.directory:
            wait_s = order.answer_s if order.action == "install" else 0.0
            try:
                if order.action == "remove":
                    unregistered = await stack.enter_async_context(unregistry(order.directory))
                else:
                    registered = await stack.enter_async_context(registry(order.directory, wait_s))
            except Unreachable as error:
                raise Failure(f"--directory: {error}") from None
        progress = stack.enter_context(Progress())
        shown = _Shown(progress, len(hosts))
        fleet = Fleet(hosts, order, opening, bundle, settings, ssh, registered, shown.now, shown.ended, unregistered)
        return await fleet.run()


class _Shown:
    """Progress: on a terminal what goes on now, elsewhere a line when a host is done."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def now(self, host: Host, step: str) -> None:
        if self._progress.live:
            self._progress.show(f"{self._count()}; {label(host)}: {step}", self._done, self._total)

    def ended(self, outcome: Outcome) -> None:
        self._done += 1
        text = f"{label(outcome.host)}: {outcome.result} in {outcome.took_s:.1f} s{_steps(outcome)}"
        if not self._progress.live:
            self._progress.show(f"{text} [{self._count()}]")

    def _count(self) -> str:
        return f"{self._done} of {counted(self._total, 'host')}"


def label(host: Host) -> str:
    return f"{host.name} ({host})" if host.name else str(host)


def _steps(outcome: Outcome) -> str:
    told = ", ".join(f"{step.name} {millis(step.ms)}" for step in outcome.steps)
    return f" ({told})" if told else ""


def show(outcomes: Sequence[Outcome], as_json: bool) -> None:
    """All hosts, then what went wrong, then how many of each."""
    if as_json:
        json.dump(_document(outcomes), sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    table(
        ("host", "boot stub", "result", ">seconds", ">process", "kept by", "done"),
        [
            (
                str(each.host),
                each.name or each.host.name or "-",
                Styled(each.result, STYLES.get(each.result, "")),
                f"{each.took_s:.1f}",
                each.pid or "-",
                each.supervisor or "-",
                "; ".join(step.done for step in each.steps if step.done) or "-",
            )
            for each in outcomes
        ],
        spare=("kept by", "done"),
    )
    for each in outcomes:
        if each.reason:
            line(f"{label(each.host)}: {each.reason}")
        for text in each.tail:
            line(f"  {text}", "dim")
    counts = [f"{len(names)} {result}" for result, names in _sets(outcomes).items() if names]
    line(f"{counted(len(outcomes), 'host')}: {', '.join(counts)}")


def _sets(outcomes: Sequence[Outcome]) -> dict[Result, list[str]]:
    """Each host in exactly one."""
    return {result: [str(each.host) for each in outcomes if each.result == result] for result in RESULTS}


def _document(outcomes: Sequence[Outcome]) -> dict[str, object]:
    return {
        "targeted": len(outcomes),
        "sets": _sets(outcomes),
        "hosts": [asdict(each) | {"host": str(each.host), "domain": each.host.domain} for each in outcomes],
    }


def exit_code(outcomes: Sequence[Outcome]) -> Exit:
    results = {each.result for each in outcomes}
    if "interrupted" in results:
        return Exit.INTERRUPTED
    if results & BAD:
        return Exit.ERROR
    return Exit.FOUND if "differs" in results else Exit.DONE
