"""`fabric managent apply`: the plan, a question, progress wave by wave, and by name what came of it."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from argparse import Namespace
from contextlib import AsyncExitStack

from deploy.at_work import Work
from deploy.cli import showing
from deploy.cli.places import Places, allowed, places, repository, roots
from deploy.cli.running import run
from deploy.cli.waiting import TICK_S, Waiting
from deploy.messages import Counts
from deploy.plan import Plan
from deploy.top import Progress, Result, Then, Top
from deploy.waves import Wave, parse_share
from fabric.cli import output
from fabric.cli.exits import Exit, Failure

LINE_EVERY_S = 5.0
"""Where no terminal shows progress as one live line; the first of each wave comes at once."""
SILENT_S = 15.0
"""After so long without news it is said there that there is none."""
RESUME = "what was told already goes on by itself; the rest: the same command with --resume"


def apply(args: Namespace) -> int:
    where, url, named = places(args), repository(args), roots(args)
    return run(_apply(args, where, url, named))


async def _apply(args: Namespace, where: Places, url: str, named: tuple[str, ...]) -> int:
    began = time.monotonic()
    async with AsyncExitStack() as stack:
        async with Waiting(where.told) as waiting:
            top = await stack.enter_async_context(Top.open(where.directory, where.key, roots=allowed(args)))
            waiting.now(f"the repository {url}, and what is there")
            plan = await top.plan(url, named, only=args.only)
        if not output.wants_json(args):
            showing.show_plan(plan)
        if plan.empty and not (args.recheck or args.resume or args.stay):
            return _ended(args, plan, None, began)
        if not args.yes and not plan.empty and not await _agreed("apply this? [y/N] "):
            output.remark("nothing was changed")
            return Exit.DONE
        if args.stay:
            return await _Staying(args, top, plan, began).run()
        try:
            result = await _watched(args, top, plan)
        except asyncio.CancelledError:
            output.remark(f"stopped watching; {RESUME}")
            raise
    return _ended(args, plan, result, began)


class _Staying:
    """The apply, and this process as the top from then on, until it is told to end (Ctrl-C, SIGTERM)."""

    def __init__(self, args: Namespace, top: Top, plan: Plan, began: float) -> None:
        self._args, self._top, self._plan, self._began = args, top, plan, began
        self._stayer = top.stayer(plan.repository, output.remark)
        self._code: int | None = None
        """Of the apply, when that is done."""

    async def run(self) -> int:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        try:
            await _watched(self._args, self._top, self._plan, self._keep)
            raise Failure(f"stays no longer: {await self._stayer.follow()}")
        except asyncio.CancelledError:
            if self._code is None:
                output.remark(f"stopped watching; {RESUME}")
                raise
            task.uncancel()
            output.remark("stays no longer: nobody looks after the roots now")
            return self._code

    async def _keep(self, work: Work, result: Result) -> None:
        self._code = _ended(self._args, self._plan, result, self._began)
        sys.stdout.flush()
        output.remark("stays, and looks after the roots, until it is interrupted")
        await self._stayer.keep(work)


async def _watched(args: Namespace, top: Top, plan: Plan, then: Then | None = None) -> Result:
    with output.Progress() as shown:
        watching = Watching(shown)
        ticking = asyncio.create_task(watching.ticking())

        async def rolled(work: Work, result: Result) -> None:
            ticking.cancel()
            with shown.paused():
                if then is not None:
                    await then(work, result)

        try:
            return await top.apply(
                plan,
                wave=parse_share(args.wave) if args.wave else None,
                max_failed=parse_share(args.max_failed) if args.max_failed else None,
                resume=args.resume,
                recheck=args.recheck,
                prune=not args.keep,
                take_over=args.take_over,
                on_progress=watching.show,
                go_on=watching.ask if args.pause else None,
                then=rolled,
            )
        finally:
            ticking.cancel()


def _ended(args: Namespace, plan: Plan, result: Result | None, began: float) -> int:
    took_s = round(time.monotonic() - began, 3)
    if output.wants_json(args):
        showing.emit(showing.applied_view(plan, result, took_s))
    elif result is not None:
        showing.show_sets(result.sets, result.halted)
        wave = f"wave {result.wave} of {result.of}, " if result.of > 1 else ""
        output.line(f"{wave}{took_s:.1f} s")
    return Exit.DONE if result is None or (result.sets.complete and not result.halted) else Exit.NOT_ALL


class Watching:
    """Progress, as often as people want to read it."""

    def __init__(self, shown: output.Progress) -> None:
        self._shown = shown
        self._last: Progress | None = None
        self._began = self._shown_at = time.monotonic()

    def show(self, progress: Progress) -> None:
        now = time.monotonic()
        same_wave = self._last is not None and self._last.wave.number == progress.wave.number
        self._last = progress
        if self._shown.live or not same_wave or now >= self._shown_at + LINE_EVERY_S:
            self._say(progress, now)

    async def ticking(self) -> None:
        """Until it is cancelled: the time goes on."""
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            if self._last is not None and (self._shown.live or now >= self._shown_at + SILENT_S):
                self._say(self._last, now)

    def _say(self, progress: Progress, now: float) -> None:
        self._shown_at = now
        after_s = now - self._began
        after = f", {after_s:.0f} s" if after_s >= TICK_S else ""
        counts = progress.counts
        self._shown.show(sentence(progress) + after, counts.targeted - counts.pending, progress.targeted)

    async def ask(self, wave: Wave, counts: Counts) -> bool:
        """Whether to go on after `wave`."""
        with self._shown.paused():
            output.remark(f"wave {wave.number} of {wave.of} is settled: {showing.sum_of(counts)}")
            return await _agreed("go on? [y/N] ")


def sentence(progress: Progress) -> str:
    """wave 2 of 10: 40 of 400 active, 3 not."""
    counts = progress.counts
    well = counts.active + counts.passive + counts.stopped
    bad = counts.refused + counts.failed + counts.unreachable
    wave = f"wave {progress.wave.number} of {progress.wave.of}: " if progress.wave.of > 1 else ""
    return f"{wave}{well} of {progress.targeted} active" + (f", {bad} not" if bad else "")


async def _agreed(question: str) -> bool:
    """What a person at a terminal says; who is none has agreed by running the command."""
    if not sys.stdin.isatty():
        return True
    print(question, end="", file=sys.stderr, flush=True)
    loop = asyncio.get_running_loop()
    said: asyncio.Future[str] = loop.create_future()

    def hear() -> None:
        if not said.done():
            said.set_result(sys.stdin.readline())

    loop.add_reader(sys.stdin.fileno(), hear)
    try:
        return (await said).strip().lower() in ("y", "yes")
    finally:
        loop.remove_reader(sys.stdin.fileno())
