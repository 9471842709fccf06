"""Drivers: how an instance is run. The interface is `base.Driver`; `make_driver` makes the one a configuration names.

Imports are inside the function, and `typing` is not imported at all: a supervisor, the small process beside every
agent, imports this package too, and its start would take half as long again.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from fabric.drivers.base import Driver, OnExit

NAMES = ("process", "null")


def make_driver(name: str, state_dir: Path, on_exit: OnExit, *, lifeline_fd: int | None = None) -> Driver:
    """`state_dir`: the agent's own, made when missing. `lifeline_fd`: see `process.py`.
    Raises ValueError for an unknown name."""
    if name == "process":
        from fabric.drivers.process import ProcessDriver

        return ProcessDriver(state_dir, on_exit, lifeline_fd=lifeline_fd)
    if name == "null":
        from fabric.drivers.null import NullDriver

        return NullDriver(on_exit)
    raise ValueError(f"expected a driver of {', '.join(NAMES)}, found {name!r}")
