"""A compute agent's answers to commands: offer, reserve, confirm, cancel, stop, describe, verify.

The agent is the only authority over its node. Every command that changes something carries the deployment's (epoch,
step); the agent refuses one that is earlier than the latest it has seen (`Stale`), so neither a coordinator that was
replaced while it slept nor a message that was under way too long can undo what came later. Every command may be
repeated. What is confirmed or told to stop is journaled before it is acknowledged.

And nothing *new* is reserved or confirmed under a claim that is older than this node's registration (zxids tell): the
coordinator may have been replaced while the node was away, and its successor may have placed the same ordinals
elsewhere, which an agent that was told nothing since can't know. A coordinator that wants the node claims anew.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Mapping

from fabric.commands import (
    MAX_HOLDERS,
    Answer,
    AskOffer,
    Cancel,
    Cancelled,
    Command,
    Confirm,
    Describe,
    Described,
    Held,
    Holder,
    LogText,
    Offer,
    Progress,
    ReadLog,
    Reserve,
    Reserved,
    Stale,
    Stop,
    Unable,
    Verify,
    Verifying,
)
from fabric.effects import FetchLog, LogFetched
from fabric.messages import Vitals
from fabric.ordinals import format_ordinals, parse_ordinals
from fabric.resources import ZERO
from fabric.roles.beats import Beats
from fabric.roles.instances import Instances
from fabric.roles.ledger import Ledger
from fabric.roles.outbox import Outbox, earliest
from fabric.roles.settings import Identity, Settings
from fabric.roles.touch import Touch
from fabric.roles.verify import Verifier
from fabric.roles.work import NOTHING, Entry, Work

MAX_FENCES = 1024
"""Deployments whose last (epoch, step) is remembered after they left this node."""
MAX_LOG_READS = 64


class Compute:
    """Embed it: `command` answers through the outbox; `instances` takes the world's news."""

    def __init__(
        self,
        identity: Identity,
        settings: Settings,
        rng: random.Random,
        out: Outbox,
        beats: Beats,
        journal: Mapping[str, bytes],
    ) -> None:
        self._identity = identity
        self._settings = settings
        self._out = out
        self._beats = beats
        self.ledger = Ledger(identity.total)
        self.instances = Instances(identity, settings, rng, out, self.ledger, beats.answer, journal)
        self.verifier = Verifier(identity, settings, rng, out, self.instances)
        self.touch = Touch(self.instances, out)
        self.cordoned = False
        self.registered: int | None = None
        """The zxid of this node's registration; None while there is none."""
        self._fences: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._log_reads: dict[str, tuple[str, str]] = {}
        for work in self.instances.works.values():
            self._fences[work.deployment] = (work.epoch, work.step)

    # --- commands ------------------------------------------------------------------------------------------------

    def command(self, now: float, sender: str, call: str, command: Command) -> None:
        if isinstance(command, ReadLog):
            self._read_log(now, sender, call, command)
            return
        try:
            answer = self._obey(now, command)
        except ValueError as error:  # ordinals that make no sense
            answer = Unable(str(error)[:500])
        if isinstance(command, Confirm | Stop) and isinstance(answer, Progress):
            work = self.instances.works.get(command.deployment)
            if work is not None:
                if not answer.refused and self.instances.held.hold(now, work, sender, call):
                    return
                if work.unsaved:
                    self.instances.save(work)
        self._beats.answer(now, sender, call, answer)

    def _obey(self, now: float, command: Command) -> Answer:
        if isinstance(command, AskOffer):
            return self._offer(command)
        if isinstance(command, Describe):
            return self._describe(now, command)
        if isinstance(command, Verify):
            self.verifier.look(command.deployment)
            return Verifying(command.deployment in self.instances.works)
        if not isinstance(command, Reserve | Confirm | Cancel | Stop):
            return Unable(f"{type(command).__name__}: expected a command for a compute agent")
        if not isinstance(command, Cancel):
            parse_ordinals(command.ordinals)  # what makes no sense must not move the fence either
        seen = self._fences.get(command.deployment, (0, 0))
        if (command.epoch, command.step) < seen:
            return Stale(*seen)
        self._fences[command.deployment] = (command.epoch, command.step)
        self._fences.move_to_end(command.deployment)
        self._trim_fences()
        if isinstance(command, Reserve):
            return self._reserve(now, command)
        if isinstance(command, Confirm):
            return self._confirm(now, command)
        if isinstance(command, Cancel):
            self.ledger.cancel_deployment(command.deployment)
            return Cancelled()
        return self._stop(command)

    def _offer(self, ask: AskOffer) -> Offer:
        count, held, oldest = self._room(ask.deployment, ask)
        return Offer(
            count=0 if self.cordoned or self.registered is None else min(count, ask.wanted),
            free=self.ledger.free,
            total=self.ledger.total,
            cordoned=self.cordoned,
            held=min(held, ask.wanted),
            oldest=oldest,
            capacity=min(self.ledger.total.holds(ask.resources), 10_000),
            short=self.ledger.free.shortest(ask.resources),
            registered=self.registered or 0,
            holders=self._holders(ask.deployment),
        )

    def _holders(self, deployment: str) -> tuple[Holder, ...]:
        return tuple(Holder(owner, reserved) for owner, reserved in self.ledger.holders(deployment)[:MAX_HOLDERS])

    def _room(self, deployment: str, ask: AskOffer | Reserve) -> tuple[int, int, int]:
        held, oldest = self.ledger.held_by_others(deployment, ask.resources)
        return min(self.ledger.fits(ask.resources), 10_000), min(held, 10_000), oldest

    def _reserve(self, now: float, ask: Reserve) -> Reserved:
        granted = []
        open_to_it = not self.cordoned and self._takes_new(ask.epoch)
        if open_to_it:
            expires_s = now + ask.ttl_ms / 1000
            for ordinal in parse_ordinals(ask.ordinals):
                if self.ledger.reserve((ask.deployment, ordinal), ask.resources, ask.ticket, expires_s):
                    granted.append(ordinal)
        count, held, oldest = self._room(ask.deployment, ask)
        room, free = (count, self.ledger.free) if open_to_it else (0, ZERO)
        return Reserved(format_ordinals(granted), room, held, oldest, free, self._holders(ask.deployment))

    def _takes_new(self, epoch: int) -> bool:
        return self.registered is not None and epoch > self.registered

    def _confirm(self, now: float, ask: Confirm) -> Progress:
        ordinals = parse_ordinals(ask.ordinals)
        works = self.instances.works
        work = works.get(ask.deployment) or Work(ask.deployment, ask.spec, ask.epoch, ask.step)
        work.report_to = ask.report_to
        refused, fresh, moved = [], False, (work.epoch, work.step) != (ask.epoch, ask.step)
        if work.epoch != ask.epoch:
            work.new_run()
        work.epoch, work.step = ask.epoch, ask.step
        # Out of touch for too long it may have been replaced by now: what it is told late runs elsewhere.
        takes_new = self._takes_new(ask.epoch) and not self.touch.is_over(now, ask.spec.stop_after_s)
        for ordinal in ordinals:
            entry = work.entries.get(ordinal)
            if entry is not None:
                if entry.state != "stopping":
                    entry.epoch, entry.step = ask.epoch, ask.step
            elif takes_new and self.ledger.confirm((ask.deployment, ordinal), work.spec.resources):
                work.entries[ordinal] = Entry(ordinal, ask.epoch, ask.step)
                fresh = True
            else:
                refused.append(ordinal)
        if work.entries:
            works[ask.deployment] = work
            self.verifier.schedule(now, ask.deployment)
            work.unsaved = work.unsaved or fresh or moved
            self.instances.begin(now, work)
        work.messages += 1
        return work.progress(tuple(refused))

    def _stop(self, ask: Stop) -> Progress:
        self.ledger.cancel_deployment(ask.deployment)
        work = self.instances.works.get(ask.deployment)
        if work is None:
            return NOTHING
        ordinals = tuple(sorted(work.entries)) if ask.everything else parse_ordinals(ask.ordinals)
        work.epoch, work.step = ask.epoch, ask.step
        marked = self.instances.mark_stopping(work, ordinals)
        if marked:
            work.unsaved = True
            self.instances.stop(work, marked)
        work.messages += 1
        return work.progress()

    def _trim_fences(self) -> None:
        while len(self._fences) > MAX_FENCES + len(self.instances.works):
            oldest = next(one for one in self._fences if one not in self.instances.works)
            del self._fences[oldest]

    def _describe(self, now: float, ask: Describe) -> Described:
        views = []
        for deployment in sorted(self.instances.works):
            if not ask.deployment or ask.deployment == deployment:
                views.extend(self.instances.works[deployment].views(self._identity))
            if len(views) > ask.limit:
                break
        reserved = tuple(
            Held(deployment, format_ordinals(ordinals), round((until - now) * 1000))
            for deployment, (ordinals, until) in self.ledger.reservations().items()
            if not ask.deployment or ask.deployment == deployment
        )
        return Described(tuple(views[: ask.limit]), len(views) > ask.limit, reserved[: ask.limit])

    def _read_log(self, now: float, sender: str, call: str, ask: ReadLog) -> None:
        if len(self._log_reads) >= MAX_LOG_READS:
            self._beats.answer(now, sender, call, Unable("too many logs are being read"))
            return
        self._log_reads[call] = (sender, call)
        self._out.add(FetchLog(call, ask.instance, ask.max_bytes))

    def on_log(self, now: float, event: LogFetched) -> None:
        asked = self._log_reads.pop(event.token, None)
        if asked is not None:
            sender, call = asked
            self._beats.answer(now, sender, call, LogText(event.known, event.data))

    # --- status and time -----------------------------------------------------------------------------------------

    @property
    def mark(self) -> tuple[int, bool, int]:
        """Another one when a heartbeat would say something else."""
        return self.ledger.changes, self.cordoned, self.instances.images

    @property
    def vitals(self) -> Vitals:
        return Vitals(
            self.ledger.free,
            self.cordoned,
            self.instances.count,
            self.ledger.reserved_count,
            self.instances.images,
            0,
        )

    def tick(self, now: float) -> None:
        self.ledger.expire(now)
        self.touch.tick(now)
        self.instances.tick(now)
        self.verifier.tick(now)

    @property
    def next_deadline(self) -> float | None:
        return earliest(
            self.ledger.next_expiry(),
            self.touch.next_deadline,
            self.instances.next_deadline,
            self.verifier.next_deadline,
        )

    # --- membership ----------------------------------------------------------------------------------------------

    def arrived(self, now: float, registered: int) -> None:
        """Counted as present, with all that it has."""
        self.registered = registered
        self.verifier.registered(now)
        self.touch.found()
        self.touch.resume(now)

    def departed(self, now: float) -> None:
        """The session is over, and with it the registration: others may be given what was set aside here."""
        self.registered = None
        self.ledger.cancel_all()
