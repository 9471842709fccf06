"""The matrix: every role killed at every step of the flow, on real processes, and what becomes of the request.

Theory of operation. One small fabric with step hooks serves all cells; a cell that leaves it in trouble ends it, and
the next cell gets a fresh one. A cell:

    push an image that nobody has cached; arm the step for those who play the role
    make the request                           the client repeats it until it is answered; of a way back it is a DELETE
    wait until somebody has fired              he is dead, or stopped
    wait until the deployment is final         he stays dead: others must bring it to its end (or he is back at once);
                                               with more `victims`, so does the next who comes to that step meanwhile
    bring him back                             (the API, which is one, at once; who was stopped goes on)
    wait until all is as it should be          judge.py, over and over; what it still says at the bound is trouble
    delete it all

Meanwhile processes are watched (watch.py), so that an ordinal that runs twice for a moment is seen.
"""

from __future__ import annotations

import contextlib
import random
import secrets
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, Self, TypeVar

import httpx
import msgspec

from fabric.chaos import eye, judge, looking, scan
from fabric.chaos.cells import NEVER, Cell
from fabric.chaos.stage import Stage
from fabric.chaos.watch import CannotLook, Watcher
from fabric.chaos.watching import Watching
from fabric.chaos.world import Rules
from fabric.drivers.procfs import process_stat
from fabric.flavors import load_flavors
from fabric.load import image
from fabric.load.history import Clock
from fabric.local.folder import NODES
from fabric.local.harness import LocalFabric
from fabric.runtime import stepping
from fabric.runtime.stepping import Action, Armed, Fired
from fabric.steps import BACK, Step

T = TypeVar("T")
Back = Literal["ended", "now"]
SHAPE = {"racks": 2, "compute": 3, "storage": 2}
SESSION_S = 2.0
WISH = {"count": 6}
"""One instance for each compute node."""
GREEDY = {"count": 12, "max_per_node": 1, "min_count": 3}
"""More than there is room for: then every agent is asked what it has."""
ASKED_OF_ALL = frozenset({"agent.offer-asked", "agent.offered"})
"""Steps that a request need not come to, as rack leaders may answer for their agents."""
FLAVOR = "Small"
IMAGE_BYTES = 3 * 1024 * 1024
"""Some chunks from each holder."""
REACH_S = 10.0
"""From the request to the step."""
END_S = 45.0
"""From the fault to the final state: who looks for an image that nobody serves does so for 30 s."""
WHOLE_S = 40.0
"""From the victim's return to everything as it should be: repair waits 15 s for a holder to come back."""
STOPPED_SESSIONS = 1.5
"""For so many sessions who is stopped stands still at least, even if he comes back at once."""
ALONE = frozenset({"api", "holder"})
"""There is one API, and without both holders nobody can start anything."""
DONE_FOR = frozenset({"", "Z", "X", "T"})
"""States of a process that is dead, or stopped."""
RETRY_S = 0.1
ANSWER_S = 15.0
POLL_S = 0.05
LOOK_S = 0.25


class _Late(Exception):
    """Something did not happen within its bound: what."""


class Matrix:
    """A context manager. `options`: as LocalFabric has them."""

    def __init__(self, action: Action = "kill", back: Back = "ended", victims: int = 1, **options: Any) -> None:
        """`victims`: so many come to their end at a step one after the other, as far as others come to it."""
        self.action: Action = action
        self.back: Back = back
        self.victims = victims
        self.options = {**SHAPE, "session_timeout_s": SESSION_S, **options}
        self._stack = contextlib.ExitStack()
        self._number = 0
        self._run = secrets.token_hex(4)
        self._rng = random.Random(self._run)
        self._fabric: LocalFabric | None = None
        self._back: list[Fired] = []
        """Who was hit in this cell and is back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def run(self, steps: Iterable[Step]) -> Iterator[Cell]:
        """One cell after the other. Raises UpFailed, FolderError."""
        for step in steps:
            if self._fabric is None:
                self._open()
            cell = self._cell(step)
            if not cell.holds:
                self._close()
            yield cell

    # --- the fabric --------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        fabric = self._stack.enter_context(LocalFabric(faults=True, **self.options))
        spec = fabric.up.spec
        racks = tuple(sorted({view.node.rack for view in fabric.up.nodes}))
        storage = tuple(view.node.name for view in fabric.up.nodes if view.node.layer == "storage")
        flavors = {name: flavor.resources for name, flavor in load_flavors().items()}
        self.rules = Rules(spec.capacity, flavors)
        watching, clock = Watching(self.rules), Clock()
        watcher = Watcher(fabric.zk_hosts, fabric.folder.path / NODES, racks, storage, watching, clock, frozenset)
        watcher.open()
        self._stack.callback(watcher.close)
        control = fabric.front.control
        self.stage = Stage(control, fabric.folder, watcher, watching, clock, self._rng, fabric.up, own=True)
        self.http = self._stack.enter_context(httpx.Client(base_url=fabric.api_url, timeout=ANSWER_S))
        self.pool = self._stack.enter_context(ThreadPoolExecutor(1, "ask"))
        self._fabric = fabric

    def _close(self) -> None:
        self._fabric = None
        self._stack.close()

    @property
    def fabric(self) -> LocalFabric:
        assert self._fabric, "open first"
        return self._fabric

    # --- one cell ----------------------------------------------------------------------------------------------------

    def _cell(self, step: Step) -> Cell:
        self._number += 1
        self._back.clear()
        name = f"cell-{self._number}"
        findings = self.stage.watching.findings
        known = len(findings)
        cell = Cell(step.name)
        try:
            cell = self._broken(step, name)
        except (_Late, CannotLook, httpx.HTTPError, TimeoutError) as error:
            cell = _with(cell, str(error) or type(error).__name__)
        seen = [f"{found.promise}: {found.text}" for found in findings[known:]]
        return _with(cell, *seen)

    def _broken(self, step: Step, name: str) -> Cell:
        faults = self.fabric.folder.faults
        digest = self._push(name)
        made = ""
        if step.flow == BACK:
            made = self._ask("POST", name)
            self._until(lambda: self._state(made)[0] == "running", END_S, f"{name} to run before it is deleted")
        victims = 1 if step.role in ALONE else self.victims
        one = Armed(step.name, self._players(step, digest), self.action)
        armed = tuple(stepping.arm(faults, one) for _ in range(victims))
        wish = GREEDY if step.name in ASKED_OF_ALL else WISH
        asked = self.pool.submit(self._ask, "DELETE" if made else "POST", name, made, wish)
        hit = self._fired(armed[:1])
        if not hit:
            for number in armed:
                stepping.disarm(faults, number)
            return Cell(step.name, troubles=(f"nobody came to this step within {REACH_S:g} s",))
        at = time.monotonic()
        for fired in hit:
            self.stage.hit(fired.node)
        away_s = END_S
        if self.back == "now" or step.role == "api":
            away_s = STOPPED_SESSIONS * self.fabric.up.spec.session_timeout_s if self.action == "stop" else 0.0
        cell = self._ended(Cell(step.name, hit[0].node), asked, at, hit, at + away_s)
        more = tuple(number for number in armed[1:] if not stepping.disarm(faults, number))
        hit = (*hit, *self._fired(more))
        self._bring_back(hit)
        back = time.monotonic()
        cell = msgspec.structs.replace(cell, victim=",".join(dict.fromkeys((cell.victim, *(one.node for one in hit)))))
        left = self._whole(back + WHOLE_S, name)
        cell = _with(cell, *left, whole_ms=NEVER if left else _ms_since(back))
        if cell.holds:
            self._remove(asked.result(0), name)
        return cell

    def _players(self, step: Step, digest: str) -> tuple[str, ...]:
        """Who may be the victim; empty: whoever comes there."""
        watcher = self.stage.watcher
        now = watcher.ask(lambda client: eye.present(client, watcher.racks))
        leading = {node for (layer, _), node in now.leaders.items() if layer == "compute"}
        match step.role:
            case "agent":
                return tuple(sorted(set(now.compute) - leading))
            case "holder":
                found = scan.holders(watcher.nodes, watcher.storage, (digest,), whole=False)
                return tuple(sorted(found[digest]))
        return ()

    def _fired(self, numbers: Sequence[int]) -> tuple[Fired, ...]:
        """Who did, when it has happened to all of them: they tell of it before. Empty: not all in time."""

        def look() -> tuple[Fired, ...]:
            told = [one for one in stepping.fired(self.fabric.folder.faults) if one.number in numbers and one.node]
            done = tuple(one for one in told if process_stat(one.pid)[0] in DONE_FOR)
            return done if len(done) == len(numbers) else ()

        with contextlib.suppress(_Late):
            return self._until(look, REACH_S, "") if numbers else ()
        return ()

    def _ended(self, cell: Cell, asked: Future[str], at: float, hit: Sequence[Fired], back_at: float) -> Cell:
        """How, and when. Who was hit is brought back at `back_at` if that is sooner."""
        while time.monotonic() < at + END_S:
            if time.monotonic() >= back_at:
                self._bring_back(hit)
            if asked.done():
                state, reason = self._state(asked.result())
                if state:
                    return msgspec.structs.replace(cell, state=state, reason=reason, ended_ms=_ms_since(at))
            time.sleep(POLL_S)
        made = asked.result() if asked.done() else "the request"
        return _with(cell, f"durable: {made} is not at its end {END_S:g} s after the fault")

    def _bring_back(self, hit: Sequence[Fired]) -> None:
        """Those that are not back yet."""
        for fired in hit:
            if fired in self._back:
                continue
            self._back.append(fired)
            if self.action == "stop":
                self.fabric.front.control.kill(fired.node, signal.SIGCONT)
            else:
                self.fabric.restart(fired.node)
            self.stage.back(fired.node)

    def _remove(self, made: str, name: str) -> None:
        self._ask("DELETE", name, made)
        self._until(lambda: self._state(made)[0] == "deleted", END_S, f"{made} to be deleted when its cell is over")
        self.http.delete(f"/v1/images/{name}").raise_for_status()

    # --- asking ------------------------------------------------------------------------------------------------------

    def _push(self, name: str) -> str:
        answer = self.http.put(f"/v1/images/{name}", content=image.build(IMAGE_BYTES, self._rng))
        answer.raise_for_status()
        return str(answer.json()["digest"])

    def _ask(self, verb: str, name: str, deployment: str = "", wish: Mapping[str, int] = WISH) -> str:
        """As a user does: again, with the same key, until there is an answer. Returns the deployment."""
        deadline = time.monotonic() + END_S
        key = {"Idempotency-Key": f"{self._run}-{name}"}
        body = {"image": name, "name": name, "flavor": FLAVOR, **wish} if verb == "POST" else None
        while True:
            try:
                path = f"/v1/deployments/{deployment}" if deployment else "/v1/deployments"
                answer = self.http.request(verb, path, json=body, headers=key if verb == "POST" else None)
                if answer.status_code != 503:
                    answer.raise_for_status()
                    return str(answer.json()["id"])
                why = answer.text[:200]
            except httpx.TransportError as error:
                why = str(error)
            if time.monotonic() > deadline:
                raise _Late(f"durable: the request got no answer within {END_S:g} s: {why}")
            time.sleep(RETRY_S)

    def _state(self, deployment: str) -> tuple[str, str]:
        """(state, reason) when it is final, ("", "") before, and while nobody answers."""
        try:
            answer = self.http.get(f"/v1/deployments/{deployment}")
        except httpx.TransportError:
            return "", ""
        if answer.status_code == 503:
            return "", ""
        answer.raise_for_status()
        found = answer.json()
        return (str(found["state"]), str(found["reason"])) if found["final"] else ("", "")

    # --- looking -----------------------------------------------------------------------------------------------------

    def _whole(self, deadline: float, name: str) -> list[str]:
        """What is still wrong at the deadline."""
        while True:
            world = looking.look(self.stage, {}, thorough=False)
            wrong = [f"{found.promise}: {found.text}" for found in judge.unsettled(world, (), self.rules)]
            same = [one.id for one in world.records.values() if one.name == name]
            if len(same) > 1:
                wrong.append(f"durable: one request made {', '.join(sorted(same))}")
            if not wrong or time.monotonic() > deadline:
                return wrong
            time.sleep(LOOK_S)

    def _until(self, probe: Callable[[], T], within_s: float, what: str) -> T:
        """What `probe` answers, once that is true. Raises _Late."""
        deadline = time.monotonic() + within_s
        while not (found := probe()):
            if time.monotonic() > deadline:
                raise _Late(f"waited {within_s:g} s in vain for {what}")
            time.sleep(POLL_S)
        return found


def _with(cell: Cell, *troubles: str, whole_ms: int | None = None) -> Cell:
    whole = cell.whole_ms if whole_ms is None else whole_ms
    return msgspec.structs.replace(cell, troubles=(*cell.troubles, *troubles), whole_ms=whole)


def _ms_since(began: float) -> int:
    return round((time.monotonic() - began) * 1000)
