"""Commands to a subtree, on their way down, and what came of them, on its way up.

A `TreeCall` opens a *gather*: each child that matches gets the command, or is looked up for "status"; each child that
is an initiator with matching managents below it gets the same call. Entries go up in pages, a little after they are
there. The gather ends when all have answered, or at its deadline, a hop's margin before the asker's: then each child
that is still owed is one entry that says so.

Which comes first, an initiator or what is below it? Going down (shutdown, deactivate, uninstall, and the rest) the
subtree comes first: an initiator that is shut down passes nothing on, and one that is deactivated would not carry on
with its rollout while some of its children are still to be reached. Coming up (start, activate, deploy) the initiator
comes first, for the same reason. "status" takes them in the order of going down, as an entry says whether the subtree
answered. A child has one entry.

What was ordered is in the table before the gather ends: the asker may shut this initiator down next, or be a top that
goes away, and a successor that finds nothing about an order there would mend what it did.

The pages of one asker are a stream of numbers (`Pages`). The asker repeats its call, saying how many it has without a
gap; what it lacks is sent again. No more than `window_pages` are under way; when an asker is that slow, what comes from
below is not taken, and will come again. So a gather of any size needs little memory, and nothing is lost in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from deploy.initiator.bringing import Bringing
from deploy.initiator.house import House
from deploy.initiator.keeping import Keeper
from deploy.initiator.kid import Kid
from deploy.initiator.pages import Pages, Stream
from deploy.initiator.steps import RUNS
from deploy.initiator.stubs import Stubs
from deploy.messages import Entry, Parent, TreeCall, TreePage, What
from deploy.records import Outcome

UPWARD = frozenset({"start", "activate", "deploy"})


class Matcher(Protocol):
    """See deploy.patterns.CommandPattern."""

    def matches(self, path: str) -> bool: ...

    def may_match_below(self, path: str) -> bool: ...


@dataclass(slots=True, eq=False)
class Gather:
    """`owed`: the children whose own entry is still to come; of these, `unheard`: on boot stubs that are being adopted,
    so nobody knows yet how they are. `streams`: those from below whom an answer is still to come; not `begun` while the
    child itself has to come up first. `written`: the number of the save of the table that has all that was ordered;
    None before all have answered."""

    call: str
    pattern: str
    matcher: Matcher
    what: What
    deadline: float
    pages: Pages
    owed: dict[str, Kid] = field(default_factory=dict)
    unheard: dict[str, Kid] = field(default_factory=dict)
    streams: dict[str, Stream] = field(default_factory=dict)
    written: int | None = None
    done: bool = False


class Gathers:
    def __init__(
        self, house: House, stubs: Stubs, bringing: Bringing, keeper: Keeper, matcher: Callable[[str], Matcher]
    ) -> None:
        self._house = house
        self._keeper = keeper
        self._stubs = stubs
        self._bringing = bringing
        self._matcher = matcher
        self._open: dict[str, Gather] = {}

    # --- down --------------------------------------------------------------------------------------------------------

    def on_call(self, now: float, call: TreeCall) -> None:
        if not self._house.epoch:
            return  # it does not know its children yet, and will be asked again
        gather = self._open.get(call.call)
        if gather is not None:
            gather.pages.asked_again(now, call)
        elif not call.have:  # else an earlier incarnation has begun to answer: its numbers are not ours
            self.begin(now, call.call, call.pattern, call.what, call.wait_ms / 1000, call.asker)

    def begin(self, now: float, call: str, pattern: str, what: What, wait_s: float, asker: Parent) -> None:
        settings = self._house.settings
        pages = Pages(self._house, call, asker)
        try:
            matcher = self._matcher(pattern)
        except ValueError as error:
            self._refuse(now, pages, "failed", str(error))
            return
        under_way = [one for one in self._open.values() if not one.done]
        if len(under_way) >= settings.max_gathers and asker.address:  # the owner of a top knows its own bound
            self._refuse(now, pages, "refused", f"{len(under_way)} commands to its subtree are under way; ask again")
            return
        if len(self._open) >= 4 * settings.max_gathers:
            self._forget(next(one.call for one in self._open.values() if one.done))
        gather = self._open[call] = Gather(call, pattern, matcher, what, now + wait_s, pages)
        self._house.agenda.set(("gather", call), gather.deadline)
        for kid in sorted(self._house.kids.values(), key=lambda one: one.index):
            self._find(now, gather, kid)
        for kid in [one for one in gather.owed.values() if one.name not in gather.streams or what in UPWARD]:
            self._own(now, gather, kid)
        for stream in [one for one in gather.streams.values() if not one.begun]:
            if what not in UPWARD or stream.kid.name not in gather.owed:
                self._pass_on(now, gather, stream.kid)
        self._maybe_end(now, gather)

    def _refuse(self, now: float, pages: Pages, outcome: Outcome, reason: str) -> None:
        """One entry, in the name of this initiator. It is not remembered: who asks again may be heard then."""
        path = self._house.path
        pages.add(now, (Entry(path, "", "installed", "active", outcome, reason[:500], through=path),))
        pages.end(now)

    def _find(self, now: float, gather: Gather, kid: Kid) -> None:
        mine = gather.matcher.matches(kid.path)
        if mine:
            gather.owed[kid.name] = kid
        if not kid.initiator or not gather.matcher.may_match_below(kid.path):
            return
        if (mine and gather.what in UPWARD) or self._answers(kid):
            gather.streams[kid.name] = Stream(kid)
        elif not mine:
            gather.pages.add(now, (self._made(kid, "unreachable", self._why_silent(kid)),))

    def _answers(self, kid: Kid) -> bool:
        return kid.life in RUNS and not self._stubs.is_lost(kid.stub)

    def _why_silent(self, kid: Kid) -> str:
        return kid.reason or f"it is {kid.life}: nobody answers for what is below it"

    def _own(self, now: float, gather: Gather, kid: Kid) -> None:
        """The child's own part: look it up, or command it."""
        if gather.what == "status":
            if self._stubs.is_unheard(kid.stub):
                gather.unheard[kid.name] = kid
            else:
                self._entry(now, gather, kid, kid.outcome, kid.reason)
            return
        if gather.what == "uninstall" and kid.initiator and kid.subtree.below:
            reason = f"expected nothing left below it, found {kid.subtree.below} managents: uninstall them first"
            self._entry(now, gather, kid, "refused", reason)
            return

        def done(at: float, outcome: Outcome, reason: str) -> None:
            if self._open.get(gather.call) is gather and kid.name in gather.owed:
                self._entry(at, gather, kid, outcome, reason)
                self._maybe_end(at, gather)

        self._bringing.order(now, kid, gather.call, gather.what, done)

    def look(self, now: float) -> None:
        """After anything has happened: who was waited for may have been heard, or be lost."""
        for gather in [one for one in self._open.values() if one.unheard]:
            for kid in [one for one in gather.unheard.values() if not self._stubs.is_unheard(one.stub)]:
                del gather.unheard[kid.name]
                if kid.name in gather.owed:
                    self._own(now, gather, kid)
            self._maybe_end(now, gather)

    def _entry(self, now: float, gather: Gather, kid: Kid, outcome: Outcome, reason: str) -> None:
        gather.owed.pop(kid.name, None)
        gather.pages.add(now, (self._made(kid, outcome, reason),))
        stream = gather.streams.get(kid.name)
        if stream is not None and not stream.begun:
            if self._answers(kid):  # it came up, or was up before and refused
                self._pass_on(now, gather, kid)
            else:
                del gather.streams[kid.name]  # who did not come up passes nothing on

    def _made(self, kid: Kid, outcome: Outcome, reason: str) -> Entry:
        return Entry(
            kid.path,
            kid.stub,
            kid.env,
            kid.life,
            outcome,
            reason[:500],
            kid.prints,
            kid.generation,
            self._house.path,
        )

    def _pass_on(self, now: float, gather: Gather, kid: Kid) -> None:
        stream = gather.streams[kid.name]
        stream.begun = True
        if self._answers(kid):
            self._ask(now, gather, stream)
        else:
            self._stream_ended(now, gather, stream, self._why_silent(kid))

    def _ask(self, now: float, gather: Gather, stream: Stream) -> None:
        """The child's initiator, for the first time or again: what of it came, what did not."""
        settings, kid = self._house.settings, stream.kid
        left_s = max(gather.deadline - now - settings.hop_margin_s, 0.0)
        call = TreeCall(
            gather.call, kid.path, self._house.me, gather.pattern, gather.what, int(left_s * 1000), stream.have
        )
        if self._stubs.is_ready(kid.stub):
            self._house.send(self._stubs.where(kid.stub).address, call)
        stream.taken = 0
        wait_s = min(settings.call_repeat_s * 2**stream.asked, settings.call_repeat_max_s)
        stream.asked = min(stream.asked + 1, 10)
        self._house.agenda.set(("stream", f"{gather.call} {kid.name}"), now + wait_s)

    def on_stream_time(self, now: float, key: str) -> None:
        call, _, name = key.rpartition(" ")
        gather = self._open.get(call)
        if gather is not None and not gather.done and name in gather.streams:
            self._ask(now, gather, gather.streams[name])

    # --- up ----------------------------------------------------------------------------------------------------------

    def on_page(self, now: float, page: TreePage) -> None:
        gather = self._open.get(page.call)
        kid = self._house.kid_at(page.origin)
        stream = gather.streams.get(kid.name) if gather is not None and kid is not None else None
        if gather is None or stream is None or gather.done:
            return
        if gather.pages.is_full or not stream.take(page, self._house.settings.window_pages):
            return
        stream.asked = 0
        gather.pages.add(now, page.entries)
        if stream.whole:
            self._stream_ended(now, gather, stream, "")
            self._maybe_end(now, gather)
        elif stream.taken >= self._house.settings.window_pages // 2:
            self._ask(now, gather, stream)

    def _stream_ended(self, now: float, gather: Gather, stream: Stream, missing: str) -> None:
        """`missing`: why it has not answered for its subtree, or not for all of it."""
        kid = stream.kid
        del gather.streams[kid.name]
        self._house.agenda.drop(("stream", f"{gather.call} {kid.name}"))
        if not missing and kid.name in gather.owed:
            self._own(now, gather, kid)
        elif missing and (gather.what not in UPWARD or not gather.matcher.matches(kid.path)):
            gather.owed.pop(kid.name, None)
            gather.pages.add(now, (self._made(kid, "unreachable", missing),))

    def _maybe_end(self, now: float, gather: Gather) -> None:
        if gather.owed or gather.streams or gather.done:
            return
        if gather.written is None:
            gather.written = self._keeper.hurry() if gather.what != "status" else 0
        if self._keeper.saved >= gather.written:
            self._end(now, gather)

    def _end(self, now: float, gather: Gather) -> None:
        gather.done = True
        gather.pages.end(now)
        self._house.agenda.set(("gather", gather.call), now + self._house.settings.linger_s)

    def on_saved(self, now: float) -> None:
        for gather in self._open.values():
            self._maybe_end(now, gather)

    def on_time(self, now: float, call: str) -> None:
        """The deadline; or, when it has ended, the time to forget it."""
        gather = self._open[call]
        if gather.done:
            self._forget(call)
            return
        gather.unheard.clear()
        for stream in list(gather.streams.values()):
            if stream.begun:
                self._stream_ended(now, gather, stream, "its initiator did not answer in time for what is below it")
            else:
                del gather.streams[stream.kid.name]
        for kid in list(gather.owed.values()):
            if gather.what != "status":
                self._bringing.abandon_order(kid, call)
            self._entry(now, gather, kid, "pending", f"no answer in time to {gather.what} from boot stub {kid.stub}")
        self._end(now, gather)

    def _forget(self, call: str) -> None:
        del self._open[call]
        for what in ("gather", "page"):
            self._house.agenda.drop((what, call))

    def on_page_time(self, now: float, call: str) -> None:
        gather = self._open.get(call)
        if gather is not None:
            gather.pages.flush(now)
