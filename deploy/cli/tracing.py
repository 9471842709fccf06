"""`fabric managent trace`: the eight steps of section 3 for one managent, as they went when it was last deployed."""

from __future__ import annotations

from argparse import Namespace
from datetime import UTC, datetime

import msgspec

from deploy.cli import showing
from deploy.cli.places import places
from deploy.cli.running import run
from deploy.cli.waiting import Waiting
from deploy.identity import BadIdentity, check_path, parent_of
from deploy.top import Top, Traced
from fabric.cli import output
from fabric.cli.exits import Exit, Failure

STEPS = (
    "the initiator tells the boot stub to deploy it",
    "the boot stub asks the repository for references",
    "code is fetched",
    "configuration is fetched",
    "the installation runs",
    "the managent is started",
    "its success is reported to the initiator",
    "the initiator updates the directory",
)


class StepView(msgspec.Struct, frozen=True):
    """`ms`: how long it took; of step 7, from step 1 on; None when it was not told, or not made."""

    step: int
    what: str
    ms: int | None


class TraceView(msgspec.Struct, frozen=True):
    """For programs. `written`: when the table that it is in was last written."""

    path: str
    initiator: str
    stub: str
    attempt: int
    outcome: str
    reason: str
    written: str
    steps: tuple[StepView, ...]


def trace(args: Namespace) -> int:
    where = places(args)
    try:
        path = check_path(args.path)
    except BadIdentity as error:
        raise Failure(str(error), Exit.USAGE) from None

    async def look() -> Traced | None:
        async with Waiting(where.told), Top.open(where.directory, where.key) as top:
            return await top.trace(path)

    found = run(look())
    if found is None:
        raise Failure(f"no managent {path} is in the directory; see: fabric managent status")
    shown = view(path, found)
    if output.wants_json(args):
        showing.emit(shown)
        return Exit.DONE
    output.pairs(
        [
            ("managent", path),
            ("initiator", shown.initiator or "the top"),
            ("boot stub", shown.stub),
            ("attempt", shown.attempt),
            ("outcome", shown.outcome + (f": {shown.reason}" if shown.reason else "")),
        ]
    )
    output.table((">STEP", "WHAT", ">TOOK"), [(one.step, one.what, _took(one, shown)) for one in shown.steps])
    return Exit.DONE


def view(path: str, found: Traced) -> TraceView:
    ms: dict[int, int] = {}
    for step, took_ms in found.row.steps:  # a step may have been made in two parts
        ms[step] = ms.get(step, 0) + took_ms
    written = datetime.fromtimestamp(found.written_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return TraceView(
        path,
        parent_of(path),
        found.row.stub.name,
        found.row.attempt,
        found.row.outcome,
        found.row.reason,
        written,
        tuple(StepView(step, what, ms.get(step)) for step, what in enumerate(STEPS, start=1)),
    )


def _took(step: StepView, shown: TraceView) -> str:
    if step.step == 7 and step.ms is not None:
        return f"{output.millis(step.ms)} in all"
    if step.step == 8:
        return f"by {shown.written}"
    return "" if step.ms is None else output.millis(step.ms)
