"""chaos matrix, chaos steps: every role killed at every step of the flow of a request, on this machine."""

from __future__ import annotations

import argparse
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fabric.cli.exits import Exit, Failure

if TYPE_CHECKING:
    from fabric.chaos.cells import Cell
    from fabric.steps import Step

MATRIX = """\
Brings up a small fabric of real processes, and for each step: makes a request, kills whoever comes to that step first,
and sees that the request ends all the same, with every promise kept. Exit code 0 only if that is so for all."""
EXAMPLES = """\
examples:
  fabric chaos matrix                                    every role at every step: some minutes
  fabric chaos matrix --roles coordinator,rack
  fabric chaos matrix --steps 'agent.*' --action stop    stopped for longer than a session, instead of killed
  fabric chaos matrix --format json > matrix.json"""


def register(actions: Any) -> None:
    """Add `matrix` and `steps` to the actions of `fabric chaos`. Nothing heavy is imported before one of them runs."""
    matrix: ArgumentParser = actions.add_parser(
        "matrix", help="kill every role at every step of the flow", description=MATRIX, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    _choice(matrix)
    matrix.add_argument(
        "--action", choices=("kill", "stop", "exit", "term"), default="kill", help="what is done to them (kill)"
    )
    matrix.add_argument(
        "--back", choices=("ended", "now"), default="ended",
        help="when they come back: when the request has ended without them (ended), or at once",
    )  # fmt: skip
    matrix.add_argument(
        "--victims", type=int, choices=(1, 2), default=1,
        help="how many come to their end at a step one after the other, as far as others come to it (1)",
    )  # fmt: skip
    matrix.set_defaults(run="fabric.cli.matrix:matrix")
    steps: ArgumentParser = actions.add_parser(
        "steps", help="list the steps of the flow, at which a process can be killed",
        description="List the steps of the flow, at which a process can be killed.",
        epilog="examples:\n  fabric chaos steps\n  fabric chaos steps --roles holder,storage",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    _choice(steps)
    steps.set_defaults(run="fabric.cli.matrix:steps")


def _choice(parser: ArgumentParser) -> None:
    parser.add_argument("--roles", type=_listed, default=(), metavar="ROLE,…", help="only steps of these roles")
    parser.add_argument("--steps", type=_listed, default=(), metavar="STEP,…", help="only these, as 'agent.*'")
    parser.add_argument("--format", choices=("table", "json"), default=argparse.SUPPRESS, help="default: table")


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


def _chosen(args: Namespace) -> tuple[Step, ...]:
    from fabric.chaos.cells import BadChoice, choose

    try:
        return choose(args.roles, args.steps)
    except BadChoice as error:
        raise Failure(str(error), Exit.USAGE) from None


def steps(args: Namespace) -> int:
    from fabric.cli import output

    chosen = _chosen(args)
    if args.format == "json":
        _json([{"step": one.name, "role": one.role, "flow": one.flow, "meaning": one.meaning} for one in chosen])
    else:
        rows = [(one.name, one.flow or "back", one.moment, one.meaning) for one in chosen]
        output.table(("STEP", "FLOW", "MOMENT", "THAT IS"), rows, ("THAT IS",))
    return Exit.DONE


def matrix(args: Namespace) -> int:
    from fabric.chaos.cells import Told, rows
    from fabric.chaos.matrix import SESSION_S, Matrix
    from fabric.chaos.watch import CannotLook
    from fabric.cli import output
    from fabric.local.folder import FolderError
    from fabric.local.front import UpFailed

    chosen = _chosen(args)
    began = time.monotonic()
    cells: list[Cell] = []
    try:
        with Matrix(args.action, args.back, args.victims) as running:
            for number, cell in enumerate(running.run(chosen), 1):
                cells.append(cell)
                output.remark(f"{number} of {len(chosen)}: {cell.step}: {cell.told}")
    except (UpFailed, FolderError, CannotLook) as error:
        raise Failure(str(error)) from None
    told = Told(args.action, args.back, SESSION_S, time.monotonic() - began, tuple(cells))
    if args.format == "json":
        _json(told)
        return Exit.DONE if told.holds else Exit.ERROR
    _table(told.cells)
    output.line()
    output.table(
        ("ROLE", "CELLS", "HOLD", "ENDED AT MOST AFTER", "WHOLE AT MOST AFTER"),
        [(r.role, r.cells, r.hold, _ms(r.ended_most_ms), _ms(r.whole_most_ms)) for r in rows(cells)],
    )
    hold = sum(cell.holds for cell in cells)
    output.line(f"{hold} of {len(cells)} cells hold, in {told.took_s:.0f} s; sessions of {told.session_s:g} s")
    return Exit.DONE if told.holds else Exit.ERROR


def _json(told: object) -> None:
    import msgspec

    sys.stdout.write(msgspec.json.format(msgspec.json.encode(told), indent=2).decode() + "\n")


def _table(cells: Iterable[Cell]) -> None:
    from fabric.cli import output

    output.table(
        ("STEP", "VICTIM", "ENDED", "AFTER", "WHOLE AFTER", "HOLDS", "WHY"),
        [
            (
                cell.step,
                cell.victim,
                output.state(cell.state),
                _ms(cell.ended_ms),
                _ms(cell.whole_ms),
                "yes" if cell.holds else "NO",
                "; ".join((*cell.troubles, *([cell.reason] if cell.reason else ()))),
            )
            for cell in cells
        ],
        ("WHY",),
    )


def _ms(value: int) -> str:
    return f"{value / 1000:.1f} s" if value >= 0 else "never"
