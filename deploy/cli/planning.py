"""`fabric managent plan`."""

from __future__ import annotations

from argparse import Namespace

from deploy.cli import showing
from deploy.cli.places import allowed, places, repository, roots
from deploy.cli.running import run
from deploy.cli.waiting import Waiting
from deploy.plan import Plan
from deploy.top import Top
from fabric.cli import output
from fabric.cli.exits import Exit


def plan(args: Namespace) -> int:
    where, url, named = places(args), repository(args), roots(args)

    async def ask() -> Plan:
        async with Waiting(where.told) as waiting, Top.open(where.directory, where.key, roots=allowed(args)) as top:
            waiting.now(f"the repository {url}, and what is there")
            return await top.plan(url, named, only=args.only)

    found = run(ask())
    if output.wants_json(args):
        showing.emit(showing.plan_view(found))
    else:
        showing.show_plan(found)
    return Exit.NOT_ALL if args.exit_code and not found.empty else Exit.DONE
