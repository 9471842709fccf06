"""Drivers: how an instance is run. The interface is `base.Driver`; `make_driver` makes the one a configuration names.

Imports are inside the functions, and `typing` is not imported at all: a supervisor, the small process beside every
agent, imports this package too, and its start would take half as long again.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from fabric.drivers.base import Driver, OnExit

NAMES = ("process", "null")
LIFELINE_VARIABLE = "FABRIC_LIFELINE_FD"


def make_driver(name: str, state_dir: Path, on_exit: OnExit, *, lifeline_fd: int | None = None) -> Driver:
    """`state_dir`: the agent's own, made when missing. `lifeline_fd`: see `process.py` and `inherited_lifeline`.
    Raises ValueError for an unknown name."""
    if name == "process":
        from fabric.drivers.process import ProcessDriver

        return ProcessDriver(state_dir, on_exit, lifeline_fd=lifeline_fd)
    if name == "null":
        from fabric.drivers.null import NullDriver

        return NullDriver(on_exit)
    raise ValueError(f"expected a driver of {', '.join(NAMES)}, found {name!r}")


def inherited_lifeline() -> int | None:
    """The lifeline that a local fabric's keeper gave to this process: LIFELINE_VARIABLE in the environment, the number
    of an open pipe. None without one. Raises ValueError when it names no pipe: an agent that was promised a lifeline
    must not run without."""
    import os
    import stat

    value = os.environ.get(LIFELINE_VARIABLE)
    if value is None:
        return None
    try:
        if stat.S_ISFIFO(os.fstat(int(value)).st_mode):
            return int(value)
    except (ValueError, OverflowError, OSError):
        pass
    raise ValueError(f"expected the number of an open pipe in {LIFELINE_VARIABLE}, found {value!r}")
