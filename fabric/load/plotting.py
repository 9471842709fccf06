"""A result as a picture: what ended in each second, and how many requests took how long. matplotlib, where it is."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

from fabric.load.latency import EDGES_S
from fabric.load.results import Result

KINDS = (".png", ".svg")


class CannotPlot(Exception):
    """The picture can't be made: why, and what to do."""


def ready(path: Path) -> None:
    """Before a run, so that nobody waits for a picture that can't be. Raises CannotPlot."""
    if path.suffix not in KINDS:
        raise CannotPlot(f"--plot: expected a name that ends in .png or .svg, found {path.name!r}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise CannotPlot("--plot: expected matplotlib to be installed: install the extra 'bench'") from None


def plot(result: Result, path: Path) -> None:
    """Raises CannotPlot, OSError."""
    ready(path)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (over_time, times) = pyplot.subplots(2, 1, figsize=(9, 8), layout="constrained")
    at = [one.at_s for one in result.seconds]
    ends = at[-1:] and [at[-1] + 1]  # so that the last second is as wide as the others
    for kind in ("create", "scale", "delete", "failed"):
        counts = [getattr(one, kind) for one in result.seconds]
        if any(counts):
            over_time.step(at + ends, counts + counts[-1:], where="post", label=kind)
    over_time.axvspan(min(at, default=0), 0, color="0.92", label="warm-up")
    over_time.set(xlabel="seconds", ylabel="ended in a second", ylim=(0, None))
    plan = result.plan
    over_time.set_title(f"{result.against}\n{plan.loop}; {plan.count} of {plan.flavor}; {plan.way}", fontsize="small")
    over_time.legend(loc="best")
    for name, found in result.latencies.items():
        edges = sorted((int(at), number) for at, number in found.buckets.items())
        shares = [sum_ / max(found.count, 1) for sum_ in accumulate(number for _, number in edges)]
        times.step([1000 * EDGES_S[at] for at, _ in edges], shares, where="post", label=f"{name} ({found.count})")
    times.set(xscale="log", xlabel="ms", ylabel="part of the requests", ylim=(0, 1.02))
    times.grid(True, which="both", alpha=0.3)
    times.legend(loc="best")
    figure.savefig(path)
    pyplot.close(figure)
