"""The boot stub: a state machine that takes messages, results and the time, and says what is to be done.

    effects = stub.start(now)
    forever:
        perform `effects`, in order          # nothing after a Persist leaves before that is on the disk
        wait for an input, or for stub.next_deadline()
        effects = stub.handle(now, input)    # or stub.tick(now) when the deadline passed

Theory of operation. A command (`BipCall`) is judged in this order: whose word counts (an older (epoch, attempt) is
"stale"), was it carried out already (its answer is repeated), is one under way for this managent ("running": ask
again), does Table 1 allow it ("refused"). Then it becomes a `Job`, whose steps `verbs` writes down. One job a managent,
any number of managents at once, up to `max_calls`. When it ends, the managent is written to the journal, and the answer
leaves when that is on the disk; so everything that was ever acknowledged survives a restart, and what was not is swept
away by the runtime and may be asked for again.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, cast

import msgspec

from deploy.identity import parent_of
from deploy.messages import AdoptCall, BipAnswer, BipCall, InspectCall, Span, StubPing
from deploy.records import Prints, StubRef
from deploy.states import ALIVE, refusal
from deploy.stub import managent as records
from deploy.stub import verbs
from deploy.stub.effects import (
    Charged,
    Effect,
    Ended,
    HostInitiator,
    Input,
    Install,
    Load,
    Note,
    Received,
    Resolve,
    Send,
    Start,
    Step,
    StepFailed,
    Stepped,
)
from deploy.stub.inspections import Inspections
from deploy.stub.limits import StubSettings
from deploy.stub.managent import Forgotten, Managent
from deploy.stub.parents import Parents
from deploy.stub.verbs import Failed, Job
from fabric.effects import Persist

if TYPE_CHECKING:
    from deploy.resolved import Resolved

MAX_REASON_CHARS = 2000
MAX_PERSIST_BYTES = 4 * 1024 * 1024
MAX_TAIL_LINES, MAX_LINE_CHARS = 20, 256
WITH_CHARGE = frozenset({"deploy", "configure-env", "configure-managent"})
_STEP_NUMBERS: dict[type, int] = {Load: 3, Install: 5, Start: 6, HostInitiator: 6}

Outcome = Literal["done", "running", "refused", "failed", "stale", "unknown"]


class BootStub:
    """`guid`: of this incarnation; `boot`: of the machine. `managents`, `forgotten`, `heard` (parents.marks_of): what
    the journal held. Counters are since the start."""

    def __init__(
        self,
        ref: StubRef,
        guid: str,
        settings: StubSettings,
        now: float,
        managents: list[Managent],
        forgotten: list[Forgotten],
        boot: str,
        heard: Mapping[tuple[str, str], float],
    ) -> None:
        self.ref = ref
        self.managents: dict[str, Managent] = {one.path: one for one in managents}
        self.counters: Counter[str] = Counter()
        self._settings = settings
        self._forgotten: OrderedDict[str, Forgotten] = OrderedDict((one.path, one) for one in forgotten)
        self._parents = Parents(ref, guid, boot, settings.beat_s, settings.change_s, now)
        self._heard = heard
        self._jobs: dict[int, Job] = {}
        self._of_job: dict[int, Managent] = {}
        self._inspections = Inspections(ref.name, settings.max_inspections)
        self._number = 0
        self._effects: list[Effect] = []

    # --- life ----------------------------------------------------------------------------------------------------

    def start(self, now: float) -> list[Effect]:
        """Take up again what the journal held."""
        for managent in list(self.managents.values()):
            lapsed = self._parents.resume(managent, now, self._heard)
            if managent.removing:
                job = self._new_job("finish uninstalling")  # from its beginning: nobody knows how far it came
                self._run(now, managent, job, verbs.begin("uninstall", managent, None, job))
            elif lapsed:
                reason = f"{_silence(managent)}, while boot stub {self.ref.name} did not run"
                self._note("warning", f"{managent.path}: {reason}")
                self._run(now, managent, self._new_job("lease"), verbs.lapsed_away(managent, reason))
            elif managent.life in ALIVE:
                self._run(now, managent, self._new_job("adopt"), verbs.adopt(managent))
        self._parents.soon(now)
        return self._taken()

    def handle(self, now: float, news: Input) -> list[Effect]:
        match news:
            case Received(sender, BipCall() as call):
                self.counters[f"call {call.verb}"] += 1
                self._command(now, sender, call)
            case Received(sender, InspectCall() as call):
                self.counters["inspect"] += 1
                self._parents.heard(call.parent, now)
                self._number += 1
                self._effects += self._inspections.begin(self._number, sender, call)
            case Received(sender, AdoptCall() as call):
                self._adopted(now, sender, call)
            case Received(sender, StubPing() as ping):
                self._parents.heard(ping.parent, now)
                self._effects += self._parents.whole(ping.parent, sender)
            case Stepped(number, result, ms):
                self._stepped(now, number, result, ms)
            case Ended(path, run, reason, tail):
                managent = self.managents.get(path)
                if managent is not None and managent.run is not None and run in (None, managent.run):
                    self._ended(now, managent, reason, tail)
        return self._taken()

    def next_deadline(self) -> float:
        return self._parents.next_deadline()

    def tick(self, now: float) -> list[Effect]:
        sends, lapsed = self._parents.tick(now)
        self._effects += sends
        for managent in lapsed:
            if managent.job is None and managent.charge is not None:
                reason = _silence(managent)
                self._note("warning", f"{managent.path}: {reason}")
                self._run(now, managent, self._new_job("lease"), verbs.lapse(managent, reason))
        return self._taken()

    @property
    def jobs(self) -> int:
        return len(self._jobs)

    def _taken(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects

    # --- commands ------------------------------------------------------------------------------------------------

    def _command(self, now: float, sender: str, call: BipCall) -> None:
        if call.parent.path != parent_of(call.managent):
            parent = parent_of(call.managent) or "the top"
            reason = f"expected a command of {parent}, its parent, found one of {call.parent.path or 'the top'}"
            self._answer(sender, call, "refused", reason)
            return
        managent = self.managents.get(call.managent)
        gone = self._forgotten.get(call.managent) if managent is None else None
        known = managent or gone
        pair = (call.epoch, call.attempt)
        if known is not None and pair < (known.epoch, known.attempt):
            reason = f"expected at least epoch and attempt {known.epoch}, {known.attempt}, found {pair[0]}, {pair[1]}"
            self._answer(sender, call, "stale", reason)
            return
        if managent is not None:
            self._parents.heard(call.parent, now)
        kept = next((one for one in (known.answers if known else ()) if one.call == call.call), None)
        if kept is not None:
            self.counters["repeated"] += 1
            self._effects.append(Send(sender, kept))
            return
        if managent is not None and managent.job is not None:
            if managent.job.call is not None and managent.job.call.call == call.call:
                managent.job.sender = sender
            self._answer(sender, call, "running", f"under way: {managent.job.what}")
            return
        refused = self._refused(call, managent)
        if refused is not None:
            self._answer(sender, call, *refused)
            return
        if len(self._jobs) >= self._settings.max_calls:
            self._answer(sender, call, "running", f"{len(self._jobs)} commands are under way here")
            return
        if managent is None:
            managent = Managent(call.managent, *pair, call.parent, answers=gone.answers if gone else ())
            self.managents[call.managent] = managent
        managent.epoch, managent.attempt = pair
        managent.parent = call.parent
        self._parents.join(managent, now)
        job = self._new_job(call.verb, call, sender)
        self._run(now, managent, job, verbs.begin(call.verb, managent, call.charge, job))

    def _refused(self, call: BipCall, managent: Managent | None) -> tuple[Outcome, str] | None:
        """None: Table 1 allows it, and there is room."""
        env, life = (managent.env, managent.life) if managent is not None else ("non-existent", "non-existent")
        reason = refusal(call.verb, env, life)
        if managent is None and reason is not None:
            return "unknown", f"no such managent on boot stub {self.ref.name}; {reason}"
        if reason is None and call.verb in WITH_CHARGE and call.charge is None:
            reason = f"{call.verb}: expected a charge, which names the repository, found none"
        if reason is None and managent is None and call.verb == "deploy":
            if len(self.managents) >= self._settings.max_managents:
                reason = f"expected at most {self._settings.max_managents} managents on boot stub {self.ref.name}"
        return None if reason is None else ("refused", reason)

    def _answer(self, to: str, call: BipCall, outcome: Outcome, reason: str) -> None:
        self.counters[outcome] += 1
        managent = self.managents.get(call.managent)
        self._effects.append(Send(to, self._made(call, outcome, reason, managent)))

    def _made(self, call: BipCall, outcome: Outcome, reason: str, managent: Managent | None) -> BipAnswer:
        return BipAnswer(
            call=call.call,
            to=call.parent.path,
            managent=call.managent,
            stub=self.ref.name,
            outcome=outcome,
            env=managent.env if managent else "non-existent",
            life=managent.life if managent else "non-existent",
            prints=managent.prints if managent else Prints(),
            initiator=managent.is_initiator if managent else False,
            reason=reason[:MAX_REASON_CHARS],
        )

    # --- jobs ----------------------------------------------------------------------------------------------------

    def _new_job(self, what: str, call: BipCall | None = None, sender: str = "") -> Job:
        self._number += 1
        return Job(self._number, what, cast(verbs.Steps, None), call, sender)

    def _run(self, now: float, managent: Managent, job: Job, steps: verbs.Steps) -> None:
        job.steps = steps
        managent.job = job
        self._jobs[job.number] = job
        self._of_job[job.number] = managent
        self._advance(now, managent, job, None)

    def _stepped(self, now: float, number: int, result: object, ms: int) -> None:
        if number in self._inspections:
            self._effects.append(self._inspections.end(number, result, self.managents))
            return
        job = self._jobs.get(number)
        if job is None:
            return
        if not isinstance(result, StepFailed):
            job.spans += _spans(job.work, result, ms)
        self._advance(now, self._of_job[number], job, result)

    def _advance(self, now: float, managent: Managent, job: Job, result: object) -> None:
        """On to the next step that takes the world to do, or to the end."""
        while True:
            try:
                if isinstance(result, StepFailed):
                    work = job.steps.throw(Failed(result))
                else:
                    work = job.steps.send(result)
            except StopIteration:
                self._finish(now, managent, job, None)
                return
            except Failed as failure:
                self._finish(now, managent, job, failure)
                return
            if work == verbs.COMMIT:
                self._persist(managent)
                result = None
                continue
            job.work = work
            self._effects.append(Step(job.number, work))
            return

    def _finish(self, now: float, managent: Managent, job: Job, failure: Failed | None) -> None:
        del self._jobs[job.number], self._of_job[job.number]
        managent.job = None
        if failure is not None and failure.silent:
            managent.health, managent.reason = "silent", str(failure)
        if failure is not None and job.call is None:
            verbs.crashed(managent, str(failure))
            self._note("warning", f"{managent.path}: {job.what}: {failure}")
        answer = None
        if job.call is not None:
            outcome: Outcome = "done" if failure is None else "failed"
            self.counters[outcome] += 1
            reason, tail = (job.note, job.tail) if failure is None else (str(failure), failure.tail)
            answer = msgspec.structs.replace(
                self._made(job.call, outcome, reason, managent),
                final=failure is not None and failure.final,
                tail=_clipped(tail),
                spans=tuple(job.spans),
            )
            self._keep(managent, answer)
            self._log(managent, job, answer)
        if managent.env == "non-existent":
            self._forget(managent)
        else:
            managent.removing = False
            self._persist(managent)
            self._parents.join(managent, now)
            self._effects += self._parents.marks(again=False)
            if job.call is None:
                self._parents.changed(managent, now)
        if answer is not None:
            self._effects.append(Send(job.sender, answer))
        self._finish_ended(now, managent)

    def _keep(self, managent: Managent, answer: BipAnswer) -> None:
        """The latest with everything, those before without what is only for people."""
        old = tuple(msgspec.structs.replace(one, tail=(), spans=()) for one in managent.answers)
        managent.answers = (answer, *old)[: self._settings.kept_answers]

    def _log(self, managent: Managent, job: Job, answer: BipAnswer) -> None:
        steps = " ".join(f"{span.step}:{span.ms}" for span in answer.spans)
        if answer.outcome == "failed":
            self._note("warning", f"{managent.path}: {job.what} failed: {answer.reason}")
        else:
            self._note("debug", f"{managent.path}: {job.what} done; ms by step: {steps or '-'}")

    def _ended(self, now: float, managent: Managent, reason: str, tail: tuple[str, ...]) -> None:
        """By itself. A job that is under way finds out by its own steps."""
        assert managent.run is not None
        managent.ended = managent.run
        verbs.crashed(managent, f"{reason}: {tail[-1]}" if tail else reason)
        self.counters["crashed"] += 1
        self._note("warning", f"{managent.path}: {managent.reason}")
        if managent.job is None:
            self._finish_ended(now, managent)

    def _finish_ended(self, now: float, managent: Managent) -> None:
        if managent.ended is not None:
            had_run, managent.ended = managent.ended, None
            self._run(now, managent, self._new_job("clean up after its end"), verbs.cleared(managent, had_run))

    # --- memory --------------------------------------------------------------------------------------------------

    def _persist(self, *managents: Managent) -> None:
        puts: list[tuple[str, bytes]] = []
        deletes: list[str] = []
        for managent in managents:
            new, old = records.puts_of(managent)
            puts += new
            deletes += old
            if self._forgotten.pop(managent.path, None) is not None:
                deletes.append(records.key_of(records.FORGOTTEN, managent.path))
        self._effects += _portions(puts, deletes)

    def _forget(self, managent: Managent) -> None:
        del self.managents[managent.path]
        self._parents.leave(managent.path)
        gone = Forgotten(managent.path, managent.epoch, managent.attempt, managent.answers)
        self._remember([gone], records.deletes_of(managent))

    def _remember(self, gone: list[Forgotten], deletes: tuple[str, ...] = ()) -> None:
        for one in gone:
            self._forgotten[one.path] = one
            self._forgotten.move_to_end(one.path)
        oldest: list[str] = []
        while len(self._forgotten) > self._settings.kept_forgotten:
            oldest.append(records.key_of(records.FORGOTTEN, self._forgotten.popitem(last=False)[0]))
        self._effects += _portions([records.put_of(one) for one in gone], [*deletes, *oldest])

    # --- other messages ------------------------------------------------------------------------------------------

    def _adopted(self, now: float, sender: str, call: AdoptCall) -> None:
        self.counters["adopt"] += 1
        gone: list[Forgotten] = []
        taken: list[Managent] = []
        for path in call.managents:
            if parent_of(path) != call.parent.path:
                continue  # a stranger's
            managent = self.managents.get(path)
            if managent is None:
                known = self._forgotten.get(path)
                if known is None or known.epoch < call.epoch:  # nothing that an older one said may come true now
                    gone.append(Forgotten(path, call.epoch, 0, known.answers if known else ()))
            elif call.epoch >= managent.epoch and (managent.epoch, managent.parent) != (call.epoch, call.parent):
                managent.epoch, managent.parent = call.epoch, call.parent
                self._parents.join(managent, now)
                if managent.env != "non-existent":
                    taken.append(managent)
        self._remember(gone)
        self._persist(*taken)
        for managent in taken:
            if managent.is_initiator and managent.life in ALIVE:
                self._effects.append(Charged(managent.path, managent.initiator_charge()))
        self._parents.heard(call.parent, now)
        self._effects += self._parents.whole(call.parent, sender)

    def _note(self, level: Literal["debug", "info", "warning", "error"], text: str) -> None:
        self._effects.append(Note(level, text))


def _silence(managent: Managent) -> str:
    """Why it is shut down. It has a lease."""
    assert managent.charge is not None
    who = managent.parent.path or "at the top"
    return f"shut down: no word from its initiator {who} for {managent.charge.lease_s:g} s, its lease"


def _spans(work: object, result: object, ms: int) -> list[Span]:
    if isinstance(work, Resolve):
        parts = cast("Resolved", result).ms
        return [Span(step, part) for step, part in zip((2, 3, 4), parts if any(parts) else (ms, 0, 0), strict=True)]
    step = _STEP_NUMBERS.get(type(work))
    return [] if step is None else [Span(step, ms)]


def _portions(puts: Sequence[tuple[str, bytes]], deletes: Sequence[str]) -> Iterator[Persist]:
    """Of a size that the journal takes in one step."""
    portion: list[tuple[str, bytes]] = []
    size = 0
    for key, value in puts:
        if size + len(value) > MAX_PERSIST_BYTES:
            yield Persist(tuple(portion), ())
            portion, size = [], 0
        portion.append((key, value))
        size += len(value) + len(key)
    if portion or deletes:
        yield Persist(tuple(portion), tuple(deletes))


def _clipped(tail: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(line[:MAX_LINE_CHARS] for line in tail[-MAX_TAIL_LINES:])
