"""`fabric managent status`, and commands to all managents that match: deactivate, activate, shutdown, start, …"""

from __future__ import annotations

from argparse import Namespace

from deploy.cli import showing
from deploy.cli.places import places
from deploy.cli.running import run
from deploy.cli.waiting import Waiting
from deploy.messages import What
from deploy.patterns import CommandPattern
from deploy.top import Answer, Top
from fabric.cli import output
from fabric.cli.exits import Exit, Failure


def status(args: Namespace) -> int:
    answer = _asked(args, "status")
    if output.wants_json(args):
        showing.emit(showing.answer_view(answer))
    else:
        showing.show_entries(answer.entries)
        showing.show_sets(answer.sets, listed=True)
    return _exit(answer)


def deactivate(args: Namespace) -> int:
    return _told(args, "deactivate")


def activate(args: Namespace) -> int:
    return _told(args, "activate")


def shutdown(args: Namespace) -> int:
    return _told(args, "shutdown")


def start(args: Namespace) -> int:
    return _told(args, "start")


def restart(args: Namespace) -> int:
    return _told(args, "restart")


def uninstall(args: Namespace) -> int:
    return _told(args, "uninstall")


def _told(args: Namespace, verb: What) -> int:
    answer = _asked(args, verb)
    if output.wants_json(args):
        showing.emit(showing.answer_view(answer))
    else:
        showing.show_sets(answer.sets)
    return _exit(answer)


def _asked(args: Namespace, what: What) -> Answer:
    where = places(args)

    async def ask() -> Answer:
        CommandPattern(args.pattern)  # before anything is opened
        async with Waiting(where.told) as waiting, Top.open(where.directory, where.key) as top:
            waiting.now(f"answers, {args.timeout:g} s at most")
            return await top.command(args.pattern, what, args.timeout)

    answer = run(ask())
    if not answer.sets.targeted and args.pattern != "/**":
        raise Failure(f"no managent matches {args.pattern}; see: fabric managent status")
    return answer


def _exit(answer: Answer) -> Exit:
    return Exit.DONE if answer.sets.complete else Exit.NOT_ALL
