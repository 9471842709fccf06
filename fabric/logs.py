"""The log of a process: agents, the API, repositories. By itself, as not all of them need what an agent needs."""

from __future__ import annotations

import logging
import sys


def set_up_log(level: str) -> None:
    """Lines on stderr: time, level, who, what. `level`: debug, info, warning, error."""
    logging.basicConfig(
        stream=sys.stderr,
        level=getattr(logging, level.upper()),
        format="%(asctime)s.%(msecs)03d %(levelname)-7s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
        force=True,
    )
