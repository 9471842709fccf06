"""Running what was confirmed: image first, then start, restart by policy, stop; and none of it twice.

Steps 7 to 9 on a compute node. An image is wanted once, however many ordinals wait for it: the world says whether the
cache has it, else a storage leader is found (`finder`) and the fetch goes on with the holders that it chose. What is
told of an ordinal is in the journal before the coordinator hears of it. What the driver found at start
(`Adopted`) is compared with the journal: known and running is adopted; known and not running starts again, unless its
policy says that it is done; running and unknown is an orphan and is stopped.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import msgspec

from fabric.commands import FetchNote, Progress
from fabric.effects import (
    Adopted,
    FetchImage,
    FetchProgress,
    HoldersWanted,
    ImageFailed,
    ImageReady,
    InstanceExited,
    InstanceFailed,
    InstanceGone,
    InstanceStarted,
    MoreHolders,
    ReleaseImage,
    StartInstance,
    StopInstance,
)
from fabric.messages import NodeReport
from fabric.roles.finder import Found, HolderFinder
from fabric.roles.held import HeldAnswers
from fabric.roles.ledger import Ledger
from fabric.roles.outbox import Outbox, earliest
from fabric.roles.settings import Identity, Settings
from fabric.roles.work import (
    FIRST_BACKOFF_S,
    SETTLED_RUN_S,
    Entry,
    EntryState,
    Work,
    WorkRecord,
    environment,
    instance_id,
    split_id,
)

PROGRESS_EVERY_S = 0.5
"""Bytes fetched are reported at most this often."""


class Instances:
    """Embed it in the compute role. `works` is its table; the role changes it through the methods below only."""

    def __init__(
        self,
        identity: Identity,
        settings: Settings,
        rng: random.Random,
        out: Outbox,
        ledger: Ledger,
        answer: Callable[[float, str, str, Progress], None],
        journal: Mapping[str, bytes],
    ) -> None:
        self._identity = identity
        self._settings = settings
        self._out = out
        self._ledger = ledger
        self.works: dict[str, Work] = {}
        self.held = HeldAnswers(settings.answer_linger_s, answer, self.save)
        self.finder = HolderFinder(identity, settings, rng, out, self._found)
        self._images: dict[str, bool] = {}
        """Digest -> ready; a digest is in here from the first want to the release."""
        self._under_way: set[str] = set()
        """Fetches that the world has not ended yet, wanted or not."""
        self._once_more: set[str] = set()
        """Wanted again while the fetch of an earlier want, which nobody waited for, was under way."""
        self._notes: dict[str, Found] = {}
        self._dirty: set[str] = set()
        self._reported: dict[str, float] = {}
        self.adopted = False
        """What the driver found at start is known."""
        self._orphans: set[str] = set()
        self._retry_at: float | None = None
        """No instance is to be started again before this."""
        self._load(journal)

    def _load(self, journal: Mapping[str, bytes]) -> None:
        for key in sorted(journal):
            if not key.startswith("w/"):
                continue
            record = msgspec.json.decode(journal[key], type=WorkRecord)
            work = Work(key[2:], record.spec, record.epoch, record.step)
            for one in record.entries:
                state: EntryState = "stopping" if one.stopping else "recovering"
                entry = Entry(one.ordinal, one.epoch, one.step, state, ran=one.ran)
                if one.ended:
                    entry.state, entry.reason = "exited", one.ended
                else:
                    self._ledger.adopt((work.deployment, one.ordinal), record.spec.resources)
                work.entries[one.ordinal] = entry
            self.works[work.deployment] = work

    @property
    def count(self) -> int:
        return sum(len(work.entries) for work in self.works.values())

    @property
    def images(self) -> int:
        return sum(self._images.values())

    @property
    def ending(self) -> bool:
        """Something is being stopped, and not gone yet."""
        return bool(self._orphans) or any(
            entry.state == "stopping" for work in self.works.values() for entry in work.entries.values()
        )

    # --- what the compute role asks ------------------------------------------------------------------------------

    def save(self, work: Work) -> None:
        """Journal `work` as it is now; without entries it is forgotten."""
        key = f"w/{work.deployment}"
        work.unsaved = False
        if work.entries:
            self._out.persist(((key, msgspec.json.encode(work.record())),))
        else:
            self._out.persist(deletes=(key,))
            self.works.pop(work.deployment, None)
            self._dirty.discard(work.deployment)
            self._reported.pop(work.deployment, None)
            self._release_unused()

    def begin(self, now: float, work: Work) -> None:
        """Bring every assigned ordinal of `work` on its way."""
        if any(entry.state == "assigned" for entry in work.entries.values()):
            self._want(work.spec.digest)
            self._advance(now, work)

    def stop(self, work: Work, ordinals: tuple[int, ...]) -> None:
        """Mark and stop these ordinals; the caller saves first what `mark_stopping` changed."""
        for ordinal in ordinals:
            grace_s = self._settings.stop_grace_s
            self._out.add(StopInstance(instance_id(work.deployment, ordinal), grace_s))

    def park(self, work: Work, entry: Entry) -> None:
        """Stop it, but keep its place and its name: it starts again when its entry is `assigned` again."""
        entry.state, entry.retry_at, entry.pid = "parked", None, 0
        self.stop(work, (entry.ordinal,))
        self._dirty.add(work.deployment)

    @staticmethod
    def mark_stopping(work: Work, ordinals: tuple[int, ...]) -> tuple[int, ...]:
        """The ordinals that are here and were not stopping already; they are now."""
        marked = []
        for ordinal in ordinals:
            entry = work.entries.get(ordinal)
            if entry is not None and entry.state != "stopping":
                entry.state = "stopping"
                entry.retry_at = None
                marked.append(ordinal)
        return tuple(marked)

    # --- image ---------------------------------------------------------------------------------------------------

    def _want(self, digest: str) -> None:
        if digest not in self._images:
            self._images[digest] = False
            if digest in self._under_way:
                self._once_more.add(digest)
            self._under_way.add(digest)
            self._out.add(FetchImage(digest, ()))

    def on_holders_wanted(self, now: float, event: HoldersWanted) -> None:
        if event.digest in self._images or event.digest in self._under_way:
            self.finder.search(now, event.digest, event.excluded)
        else:
            self._out.add(MoreHolders(event.digest, ()))

    def _found(self, now: float, found: Found) -> None:
        earlier = self._notes.get(found.digest)
        self._notes[found.digest] = found
        for work in self._users(found.digest):
            work.messages += found.messages
            work.reads += found.tree_reads
            if earlier is None:
                work.find_ms = found.took_ms
        if not found.holders:
            self._out.note("warning", f"image {found.digest}: {found.reason}")
        self._out.add(MoreHolders(found.digest, found.holders))

    def on_progress(self, now: float, event: FetchProgress) -> None:
        for work in self._users(event.digest):
            work.done_bytes, work.total_bytes = event.done, event.total
            if now - self._reported.get(work.deployment, 0.0) >= PROGRESS_EVERY_S:
                self._dirty.add(work.deployment)

    def on_ready(self, now: float, event: ImageReady) -> None:
        self._under_way.discard(event.digest)
        self._once_more.discard(event.digest)
        if event.digest not in self._images:
            self._out.add(ReleaseImage(event.digest))
            return
        self._images[event.digest] = True
        found = self._notes.pop(event.digest, None)
        for work in self._users(event.digest):
            work.done_bytes = work.total_bytes = event.size
            work.prepare_ms = event.prepare_ms
            work.fetch = FetchNote(
                storage_leader=found.storage_leader if found else "",
                found=found.all_holders if found else (),
                chosen=tuple(holder.node for holder in found.holders) if found else (),
                bytes_by_holder=dict(event.bytes_by_holder),
                dropped=event.dropped,
                find_ms=work.find_ms,
                fetch_ms=event.fetch_ms,
                cached=event.cached,
            )
            self._advance(now, work)

    def on_image_failed(self, now: float, event: ImageFailed) -> None:
        found = self._notes.pop(event.digest, None)
        self._under_way.discard(event.digest)
        if event.digest in self._once_more:  # what failed is what nobody waited for any more
            self._once_more.discard(event.digest)
            if event.digest in self._images:
                self._under_way.add(event.digest)
                self._out.add(FetchImage(event.digest, ()))
            return
        self._images.pop(event.digest, None)
        reason = event.reason
        blame = event.blame
        if found is not None and not found.holders:
            blame = "image" if found.nobody else blame
            reason = reason if found.reason in reason else f"{reason}: {found.reason}"
        for work in self._users(event.digest):
            for entry in work.entries.values():
                if entry.state in ("assigned", "fetching"):
                    if entry.ran:  # it ran before: try again later rather than give up what was running
                        self._back_off(now, entry, f"image: {reason}")
                    else:
                        entry.state, entry.blame, entry.reason = "failed", blame, f"image: {reason}"
                    self._dirty.add(work.deployment)

    def _users(self, digest: str) -> list[Work]:
        return [work for _, work in sorted(self.works.items()) if work.spec.digest == digest]

    def _release_unused(self) -> None:
        used = {work.spec.digest for work in self.works.values()}
        for digest in sorted(set(self._images) - used):
            if self._images.pop(digest):
                self._out.add(ReleaseImage(digest))
            self._notes.pop(digest, None)

    # --- start and exit ------------------------------------------------------------------------------------------

    def _advance(self, now: float, work: Work) -> None:
        ready = self._images.get(work.spec.digest, False)
        for ordinal, entry in sorted(work.entries.items()):
            if entry.state not in ("assigned", "fetching"):
                continue
            if not ready:
                entry.state = "fetching"
                continue
            entry.state = "starting"
            entry.attempt += 1
            self._orphans.discard(instance_id(work.deployment, ordinal))  # from here on it is somebody's
            work.began_start_s = work.began_start_s or now
            self._out.add(
                StartInstance(
                    instance_id(work.deployment, ordinal),
                    entry.attempt,
                    work.spec.digest,
                    environment(work, ordinal, self._identity),
                    work.spec.resources,
                )
            )
        self._dirty.add(work.deployment)

    def _entry(self, instance: str) -> tuple[Work, Entry] | None:
        parts = split_id(instance)
        work = self.works.get(parts[0]) if parts else None
        entry = work.entries.get(parts[1]) if work and parts else None
        return (work, entry) if work and entry else None

    def on_started(self, now: float, event: InstanceStarted) -> None:
        known = self._entry(event.instance)
        if known is None:
            self._orphan(event.instance)
            return
        work, entry = known
        if event.attempt < entry.attempt:
            return
        entry.attempt = event.attempt
        entry.pid, entry.started_ms, entry.directory = event.pid, event.started_ms, event.directory
        entry.started_s = now
        if entry.state in ("stopping", "parked"):
            return
        if entry.state == "exited":  # it had ended for good; somebody runs it all the same
            self._out.add(StopInstance(event.instance, self._settings.stop_grace_s))
            return
        entry.state, entry.reason = "running", ""
        work.unsaved = work.unsaved or not entry.ran
        entry.ran = True
        if work.began_start_s:
            work.start_ms = int((now - work.began_start_s) * 1000)
        self._dirty.add(work.deployment)

    def on_failed(self, now: float, event: InstanceFailed) -> None:
        known = self._entry(event.instance)
        if known is None or known[1].state in ("stopping", "parked") or event.attempt < known[1].attempt:
            return
        work, entry = known
        if entry.ran:
            self._back_off(now, entry, f"start: {event.reason}")
        else:
            entry.state, entry.blame, entry.reason = "failed", event.blame, event.reason
        self._dirty.add(work.deployment)

    def on_exited(self, now: float, event: InstanceExited) -> None:
        known = self._entry(event.instance)
        if known is None:
            self._orphan(event.instance)
            return
        work, entry = known
        if entry.state in ("stopping", "parked", "exited") or event.attempt < entry.attempt:
            return
        entry.attempt = event.attempt
        entry.pid = 0
        how = (
            "vanished" if event.lost else f"signal {event.signal}" if event.signal else f"exit status {event.code}"
        )
        tail = event.log_tail.strip().splitlines()
        reason = how + (f"; last output: {tail[-1][:200]}" if tail else "")
        policy = work.spec.restart
        done = not event.lost and (policy == "never" or (policy == "on-failure" and event.code == 0))
        if done or (event.lost and policy == "never"):
            entry.state, entry.reason = "exited", reason
            self._ledger.release((work.deployment, entry.ordinal))
            self.save(work)
        else:
            if now - entry.started_s > SETTLED_RUN_S:
                entry.retries = 0
            self._back_off(now, entry, reason)
        self._dirty.add(work.deployment)

    def _back_off(self, now: float, entry: Entry, reason: str) -> None:
        pause_s = min(FIRST_BACKOFF_S * 2.0 ** min(entry.retries, 16), self._settings.max_restart_backoff_s)
        entry.retries += 1
        entry.state, entry.reason, entry.retry_at = "backoff", reason, now + pause_s
        self._retry_at = earliest(self._retry_at, entry.retry_at)
        entry.pid = 0

    def on_gone(self, now: float, event: InstanceGone) -> None:
        self._orphans.discard(event.instance)
        known = self._entry(event.instance)
        if known is None or known[1].state not in ("stopping", "exited"):
            return
        work, entry = known
        if entry.state == "exited":
            return
        del work.entries[entry.ordinal]
        self._ledger.release((work.deployment, entry.ordinal))
        self.save(work)
        self._tell(now, work)

    def _orphan(self, instance: str) -> None:
        if instance not in self._orphans:
            self._orphans.add(instance)
            self._out.note("warning", f"instance {instance} is in nobody's plan for this node: stopping it")
            self._out.add(StopInstance(instance, self._settings.stop_grace_s))

    def on_adopted(self, now: float, event: Adopted) -> None:
        """The driver has told all it found: what it did not find starts again, what should stop stops."""
        self.adopted = True
        for _, work in sorted(self.works.items()):
            stopping = tuple(o for o, entry in sorted(work.entries.items()) if entry.state == "stopping")
            self.stop(work, stopping)
            if any(entry.state != "stopping" for entry in work.entries.values()):
                self._want(work.spec.digest)  # also for what runs already: the cache must not evict what it runs from

    # --- reports and time ----------------------------------------------------------------------------------------

    def flush(self, now: float) -> None:
        """Tell the coordinators what changed. Called once at the end of every input."""
        if not self._dirty:
            return
        dirty, self._dirty = self._dirty, set()
        for deployment in sorted(dirty):
            work = self.works.get(deployment)
            if work is not None:
                self._tell(now, work)

    def _tell(self, now: float, work: Work) -> None:
        """Whoever has asked and waits for the answer; else the coordinator, in a report."""
        if self.held.of(work.deployment):
            if not work.waiting:
                self.held.tell(now, work.deployment)
                work.report_to = ""
            return
        if work.unsaved:
            self.save(work)
        if not work.report_to:
            return
        if work.deployment in self.works:
            self._reported[work.deployment] = now
        work.messages += 1
        here = self._identity
        report = NodeReport(work.deployment, work.epoch, here.node, here.rack, work.progress())
        self._out.send(work.report_to, report)
        if not work.waiting:
            work.report_to = ""

    def tick(self, now: float) -> None:
        self.finder.tick(now)
        self.held.tick(now)
        if self._retry_at is None or now < self._retry_at:
            return
        self._retry_at = None
        for _, work in sorted(self.works.items()):
            due = [
                entry
                for entry in work.entries.values()
                if entry.state == "backoff" and entry.retry_at is not None and entry.retry_at <= now
            ]
            for entry in due:
                entry.retry_at = None
                entry.state = "assigned"
            if due:
                self._want(work.spec.digest)
                self._advance(now, work)
            for entry in work.entries.values():
                self._retry_at = earliest(self._retry_at, entry.retry_at)

    @property
    def next_deadline(self) -> float | None:
        return earliest(self._retry_at, self.held.next_deadline, self.finder.next_deadline)


