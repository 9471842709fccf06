"""The command `fabric` as it is installed: fabric's own sub-commands, and deployment's after them.

The layering is deploy -> fabric -> zk, so the lower world's command line takes the upper one's sub-commands from here,
and knows nothing of them. Which there are stands in one place: `GROUPS`, in the order in which `fabric --help` shows
them.

    parser.py    `fabric managent …` with its arguments, help and examples; imports nothing heavy
    stubs.py     `fabric stub …`, likewise
    local.py     what `fabric up` and `fabric demo` bring agents up with
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from deploy.cli import bootstub, local, parser, repository, stubs
from fabric.cli.main import main as fabric_main
from fabric.cli.parser import Register

GROUPS: tuple[Register, ...] = (
    local.register,
    parser.register,
    repository.register,
    stubs.register,
    bootstub.register,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. `arguments`: without the program's name (default: the process's)."""
    return fabric_main(arguments, GROUPS)


if __name__ == "__main__":
    sys.exit(main())
