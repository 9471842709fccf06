"""What bench.failures found, as a section of bench/RESULTS.md and a plot."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.results import commit, machine
from fabric.cli import views
from fabric.roles.settings import Settings

PLOTS = Path(__file__).parent / "plots"
PLOT = "failures.svg"


@dataclass(frozen=True, slots=True)
class Kind:
    """`grace_s`: what is waited for on purpose, beyond the session. `floor`: whether the session's timeout is one.
    `over_s`: the aim for the worst of them, above the floor; None: there is none."""

    letter: str
    title: str
    over_s: float | None = None
    grace_s: float = 0.0
    floor: bool = True


KINDS = (
    Kind("a", "rack leader killed: another serves", 1.5),
    Kind("b", "coordinator killed: its request is running", 1.5),
    Kind("c", "compute node dead: its instances run elsewhere", 1.5),
    Kind("d", "holder killed: two verified holders again", None, Settings().repair_grace_s),
    Kind("e", "ensemble's leader killed: the next request is running", None, floor=False),
    Kind("x", "rack leader leaves in order: another serves", 0.5, floor=False),
)


@dataclass(frozen=True, slots=True)
class Figures:
    """Seconds of each trial, by the letter of its kind; of requests with nothing killed; and how many requests were
    made and lost in all."""

    session_s: float
    took: Mapping[str, Sequence[float]]
    calm: Sequence[float]
    requests: int
    lost: int


def rows(bench: Figures) -> Iterator[str]:
    for kind in KINDS:
        took = bench.took.get(kind.letter)
        if not took:
            continue
        floor = (bench.session_s if kind.floor else 0.0) + kind.grace_s
        aim = "" if kind.over_s is None else f"at most {floor + kind.over_s:g}"
        floors = f"{floor:g}" if floor else ""
        if kind.letter == "e":
            floors = f"{statistics.median(bench.calm):.2f} with nothing killed"
        yield (
            f"| {kind.letter} | {kind.title} | {floors} | {aim} | {statistics.median(took):.2f} | {min(took):.2f} | "
            f"{max(took):.2f} | {len(took)} |"
        )


def plot(bench: Figures) -> bool:
    """Every trial as a dot, the floor as a line. False when matplotlib is missing."""
    try:
        import matplotlib as mpl

        mpl.use("svg")
        mpl.rcParams["svg.hashsalt"] = "fabric"
        from matplotlib import pyplot
    except ImportError:
        return False
    kinds = [kind for kind in KINDS if kind.letter in bench.took]
    figure, axis = pyplot.subplots(figsize=(9, 0.8 + 0.6 * len(kinds)), layout="constrained")
    for place, kind in enumerate(kinds):
        axis.plot(bench.took[kind.letter], [place] * len(bench.took[kind.letter]), "o", alpha=0.5, color="tab:blue")
        floor = (bench.session_s if kind.floor else 0.0) + kind.grace_s
        if floor:
            axis.plot([floor, floor], [place - 0.3, place + 0.3], color="tab:red")
    axis.set(xlabel="seconds from the failure; red: what is waited for on purpose", xlim=(0, None))
    axis.set_yticks(range(len(kinds)), [f"{kind.letter}: {kind.title}" for kind in kinds])
    axis.invert_yaxis()
    axis.grid(True, axis="x", alpha=0.3)
    PLOTS.mkdir(exist_ok=True)
    figure.savefig(PLOTS / PLOT, metadata={"Date": None})
    return True


def report(bench: Figures, found: views.Audit, command: str) -> str:
    failures = sum(len(took) for took in bench.took.values())
    wrong = "; ".join(f"{one.kind} {one.subject}" for one in found.findings) or "nothing"
    plotted = plot(bench)
    if not plotted:
        print("matplotlib is not installed (pip install '.[bench]'): the plot is left as it is", flush=True)
    lines = [
        "## Failures",
        "",
        f"{machine()}; commit {commit()}; {datetime.now(UTC):%Y-%m-%d}; `{command}`.",
        "3 racks of 4 compute and 2 storage agents, each a process; an ensemble of 3; sessions of "
        f"{bench.session_s:g} s. Seconds from the failure. The floor is what is waited for on purpose: the session's",
        "timeout, and of d the time that a holder is given to come back.",
        "",
        "| | what fails: what is waited for | floor | aim | median | least | most | trials |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *rows(bench),
        "",
        f"{failures} failures and {bench.requests} requests on one fabric, one after the other: {bench.lost} requests",
        f"lost. At the end the audit ({'complete' if found.complete else 'not complete'}) of {found.nodes} nodes and "
        f"{found.images} images found {wrong}.",
        "",
        f"![seconds of each trial](plots/{PLOT})",
    ]
    return "\n".join(lines) + "\n"
