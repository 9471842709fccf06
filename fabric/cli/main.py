"""The command `fabric`: finds the sub-command, runs it, and turns every end into an exit code.

    parser.py      every sub-command with its arguments, help and examples; imports nothing heavy
    local.py       the sub-commands about a fabric on this machine, and an agent or the API in the foreground
    client.py      the HTTP API, and where it is
    watch.py       following a deployment until it is at rest
    deployments.py, images.py, nodes.py, tracing.py, draining.py, operating.py    what the sub-commands do and show
    output.py      tables, JSON, progress; a terminal or not

`fabric --help` and wrong usage must answer at once, so a sub-command's code is imported only when it runs: a parser's
default `run` is either a function or its name as "module:function".

Deployment (`deploy/`) is above this package and has sub-commands of the same command: it passes them in as `extra`, and
is what the installed `fabric` starts (deploy.cli.main).
"""

from __future__ import annotations

import importlib
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import cast

from fabric.cli.exits import Exit, Failure
from fabric.cli.parser import Register, build

Run = Callable[[Namespace], int]


def main(arguments: Sequence[str] | None = None, extra: Sequence[Register] = ()) -> int:
    """Run one command; returns its exit code. `arguments`: without the program's name (default: the process's).
    `extra`: add further sub-commands."""
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments, extra)
        sys.stdout.flush()
        return code
    except Failure as failure:
        _complain(str(failure), *(f"  {line}" for line in failure.details))
        return failure.code
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough (`fabric list | head`). Python flushes once more when it exits:
        # that must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.DONE


def _run(arguments: Sequence[str], extra: Sequence[Register]) -> int:
    try:
        args = build(extra).parse_args(arguments)
    except SystemExit as end:  # argparse ends --help and wrong usage by itself
        sys.stdout.flush()
        return cast(int, end.code)
    return _function(args.run)(args)


def _function(run: str | Run) -> Run:
    if callable(run):
        return run
    module, _, name = run.partition(":")
    return cast(Run, getattr(importlib.import_module(module), name))


def _complain(*lines: str) -> None:
    for line in lines:
        print(line if line.startswith(" ") else f"fabric: {line}", file=sys.stderr)
