"""The keeper: starts a local fabric's processes, watches them, does what the control socket asks, takes everything
down.

Theory of operation. One thread, one selector: the leash (a socket to the front: its end means "take down", a line
that says "detach" means "go on without me"), the control socket, the eyes' answers, signals. After every event the
keeper looks at what is due: fork the next agents (no more than PARALLEL that are not yet registered), judge whether
everything is up, ask the eyes again, write the state file. It never waits for one child, so it notices the end of the
leash at once.

Coming up fails when any process ends before all is up, or the deadline passes; then all is taken down, and the
reason, with the last lines of that process's log, goes to the front. Once up, a dead process is only noted (or
restarted, `--restart`), but for companions, which always come back.

Started as `python -m fabric.local.keeper LEASH`, a descriptor, with the LocalSpec as JSON on standard input.
"""

from __future__ import annotations

import contextlib
import gc
import os
import secrets
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from fabric.local import asked, logs, nursery
from fabric.local.control import ControlServer
from fabric.local.crew import Companion, Crew, CrewError, Place, RealCrew
from fabric.local.eyes import Seen
from fabric.local.folder import LOGS, NODES, Folder, FolderError
from fabric.local.jobs import Job, how_it_ended
from fabric.local.logs import say, tail
from fabric.local.network import Helper, NetworkError
from fabric.local.sight import Sight
from fabric.local.state import LocalSpec, LocalState, Node, Phase, Report, Service, grouped, nodes_of, process
from fabric.local.takedown import NotEnded, claim, end_children, leave_in_order
from fabric.runtime import stepping
from zk.server import ServerFailed

PARALLEL = 64
"""Processes that start together, of one agent each."""
SHARING = 8
"""So many agents that share a process weigh as much as one in a process of its own: most of a start is Python's."""
TURN_S, TURN_FAST_S = 0.2, 0.02
RETRY_S = 1.0
STATE_EVERY_S = 0.2
LOGS_EVERY_S = 10.0
DETACH = b"detach"


class Failed(Exception):
    """It can't come up, and why."""


class Keeper:
    def __init__(self, spec: LocalSpec, crew: Crew, leash: socket.socket) -> None:
        self.spec, self.crew = spec, crew
        self.lock = -1
        self.leash: socket.socket | None = leash
        self.folder = Folder(Path(spec.folder))
        self.nodes = nodes_of(spec)
        self.began = time.monotonic()
        self.phase: Phase = "starting"
        self.error = ""
        self.marks: dict[str, int] = {}
        self.selector = selectors.DefaultSelector()
        self.control = ControlServer(self.selector, partial(asked.answer, self))
        self.lifeline, self.lifeline_end = os.pipe()
        self.place: Place | None = None
        self.jobs: dict[str, Job] = {}
        self.sight = Sight(self.selector, self._eyes, self.folder.log("eyes"), self._seen)
        self.write_at = self.logs_at = 0.0
        self.dirty = True
        self.last_report: Report | None = None
        self.me = process(os.getpid())

    # --- life ----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Until told to stop, or it could not come up. Returns the exit code; nothing is left then."""
        try:
            self._take_folder()
            self._prepare()
            while self.phase != "leaving":
                self._turn()
        except (Failed, FolderError, NotEnded, CrewError, NetworkError, ServerFailed, OSError) as error:
            self.error = str(error)
        self.phase = "leaving"
        self._report()
        try:
            if self.lock >= 0:
                self._take_down()
        except (NotEnded, FolderError, OSError) as error:
            self.error = self.error or str(error)
        self._report()
        return 1 if self.error else 0

    def _take_down(self) -> None:
        if not self.crew.zookeepers.own:
            leave_in_order(job.pid for job in self.jobs.values() if job.running)
            if self.place and self.place.zk != self.spec.zk:
                self.sight.sweep()  # the user named no chroot, so the one that is there is ours
        os.close(self.lifeline_end)
        ours = {self.sight.pid, *(job.pid for job in self.jobs.values() if job.running)} - {0}
        ours |= self.crew.zookeepers.helpers
        end_children(killed=ours, spared=self.crew.zookeepers.pids)
        self.crew.zookeepers.stop()
        os.chdir("/")
        self.folder.remove()

    def _take_folder(self) -> None:
        """Everything that is written from here on is in it, and goes with it."""
        self.lock = claim(self.folder)
        for name in (LOGS, NODES):
            (self.folder.path / name).mkdir(mode=0o700)
        if self.spec.faults:
            stepping.prepare(self.folder.faults)
        log = os.open(self.folder.log("keeper"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for standard in (1, 2):
            os.dup2(log, standard)
        os.close(log)
        os.chdir(self.folder.path)

    def _prepare(self) -> None:
        gc.disable()  # until all is imported and frozen
        nursery.become_subreaper()
        nursery.name_process("fabric-keeper")
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        self.selector.register(reader, selectors.EVENT_READ, lambda: self._signals(reader))
        assert self.leash
        self.leash.setblocking(False)
        self.selector.register(self.leash, selectors.EVENT_READ, self._leash)
        self.control.open()
        key = secrets.token_bytes(32)
        self.folder.key_file.touch(mode=0o600)
        self.folder.key_file.write_text(key.hex() + "\n")
        self.crew.network.prepare()
        self.marks["zookeeper_started"] = now_ms()
        zk = self.crew.zookeepers.launch()
        self.place = Place(self.spec, self.folder, zk, key, self.crew.api_address(), self.lifeline)
        self.jobs |= {job.name: job for job in map(_helper, self.crew.network.helpers())}
        self._fork_due(time.monotonic())
        # The API goes first: it imports a web framework, which takes as long as ZooKeeper takes to start.
        self.jobs["api"] = Job("api", lambda: self.crew.run_api(self.placed))
        self._fork_due(time.monotonic())
        self.crew.warm_companions()
        nursery.freeze()
        self.jobs |= {job.name: job for job in map(self._companion, self.crew.companions)}
        self._fork_due(time.monotonic())
        self.crew.warm()
        self.crew.zookeepers.wait_ready()
        self.marks["zookeeper_ready"] = now_ms()
        self._report()
        nursery.freeze()
        gc.enable()
        self.jobs |= {job.name: job for job in map(self._agents, grouped(self.nodes, self.spec.agents_per_process))}

    @property
    def placed(self) -> Place:
        assert self.place
        return self.place

    def _eyes(self, requests: int, answers: int) -> int:
        return self.crew.run_eyes(self.placed, requests, answers)

    def _agents(self, nodes: tuple[Node, ...]) -> Job:
        due = None if self.crew.agents_wait else 0.0
        return Job(nodes[0].name, lambda: self.crew.run_agents(self.placed, nodes), nodes, due)

    def _companion(self, one: Companion) -> Job:
        return Job(one.name, lambda: one.body(self.placed), unseen=True, once=one.once)

    def _turn(self) -> None:
        for key, _ in self.selector.select(self._wait_s()):
            if self.selector.get_map().get(key.fd) is key:
                key.data()
        now = time.monotonic()
        self._reap(now)
        if self.phase == "leaving":
            return
        self._fork_due(now)
        self._kill_due(now)
        self._look(now)
        self._judge(now)
        self._tidy(now)

    def _wait_s(self) -> float:
        return TURN_S if self.phase == "up" else TURN_FAST_S

    def _signals(self, reader: int) -> None:
        numbers = os.read(reader, 4096)
        if any(number in numbers for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)):
            self.phase = "leaving"

    def _leash(self) -> None:
        assert self.leash
        try:
            data = self.leash.recv(100)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data == DETACH:
            self._drop_leash()
        elif not data:
            self.phase = "leaving"
            self.selector.unregister(self.leash)

    def _drop_leash(self) -> None:
        if self.leash:
            self.selector.unregister(self.leash)
            self.leash.close()
            self.leash = None

    # --- children ------------------------------------------------------------------------------------------------

    def _fork_due(self, now: float) -> None:
        starting = sum(_weight(job) for job in self.jobs.values() if job.starting)
        for job in self.jobs.values():
            if job.due is None or job.due > now or job.running:
                continue
            if job.nodes and starting and starting + _weight(job) > PARALLEL:
                continue
            log = self.folder.log(job.name)
            try:
                with self.crew.network.inside(job.name):
                    pid = nursery.fork(job.body, name=job.name, log=log, keep=(self.lifeline, *job.keep))
            except OSError as error:
                if self.phase == "starting":
                    raise
                job.due = now + RETRY_S
                say(f"{job.name} could not be started: {error}")
                continue
            job.forked(process(pid), now)
            self.crew.network.forked(job.name, pid)
            starting += _weight(job)
            self.dirty = True

    def _reap(self, now: float) -> None:
        while True:
            try:
                dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if dead is None:
                return
            if server := self.crew.zookeepers.of(dead.si_pid):
                # As waitpid would have it, but that is left to its object.
                status = dead.si_status << 8 if dead.si_code == os.CLD_EXITED else dead.si_status
                server.exited(how_it_ended(status))
                self.sight.doubt(f"{server.name} ended")
                self._ended(server.name, server.server.log_path, server.ended)
                continue
            _, status = os.waitpid(dead.si_pid, 0)
            if dead.si_pid == self.sight.pid:
                self.sight.died()
                self._ended("eyes", self.sight.log, how_it_ended(status))
                continue
            job = next((job for job in self.jobs.values() if job.running and job.pid == dead.si_pid), None)
            if job is not None:
                again = job.again
                job.exited(how_it_ended(status), now, self._comes_back(job))
                self.dirty = True
                if not again and not job.done:
                    self._ended(job.name, self.folder.log(job.name), job.ended)

    def _comes_back(self, job: Job) -> bool:
        """By itself. Companions do, as a machine's own services would; of agents that wait, their starter decides."""
        if job.unseen:
            return self.phase == "up"
        return self.spec.restart and not (job.nodes and self.crew.agents_wait)

    def _ended(self, name: str, log: Path, how: str) -> None:
        if self.phase == "starting":
            raise Failed(f"{name} {how} while the fabric came up; its last lines:\n{tail(log)}")
        say(f"{name} {how}")

    def _kill_due(self, now: float) -> None:
        for job in self.jobs.values():
            if job.running and job.kill_at is not None and job.kill_at <= now:
                os.kill(job.pid, signal.SIGKILL)
                job.kill_at = None

    def _look(self, now: float) -> None:
        starting = [job for job in self.jobs.values() if job.starting]
        self.sight.look((name for job in starting if job.nodes for name in job.expected - job.ready), now)

    def _seen(self, seen: Seen) -> None:
        if not seen.trouble:
            for job in self.jobs.values():
                if job.running and job.saw(seen):
                    self.dirty = True
        unasked = self.crew.agents_wait and not any(job.process for job in self.jobs.values() if job.nodes)
        if unasked or not any(job.starting for job in self.jobs.values()):
            self.sight.rest()

    # --- judging and telling -------------------------------------------------------------------------------------

    def _judge(self, now: float) -> None:
        if self.phase != "starting":
            return
        now_at = self._how_far()
        done = {
            "registered": now_at.registered == now_at.nodes,
            "elected": now_at.elected == now_at.leaders,
            "api_ready": now_at.api,
            "deployed": all(job.done for job in self.jobs.values() if job.once),
        }
        for stage, reached in done.items():
            if reached:
                self.marks.setdefault(stage, now_ms())
        if all(done.values()):
            self.phase = "up"
            self.marks["up"] = now_ms()
            self.dirty = True
            self.write_at = 0.0
        elif now - self.began > self.spec.start_deadline_s:
            raise Failed(self._too_late(now_at))

    def _too_late(self, reached: Report) -> str:
        late = next((job for job in self.jobs.values() if job.ready != job.expected), None)
        told = [
            f"not up within {self.spec.start_deadline_s:g} s",
            f"{reached.registered} of {reached.nodes} agents registered",
            f"{reached.elected} of {reached.leaders} leaders elected",
            f"API {'ready' if reached.api else 'not ready'}",
            *([self.sight.seen.trouble] if self.sight.seen.trouble else []),
        ]
        lines = f"; the last lines of {late.name}:\n{tail(self.folder.log(late.name))}" if late else ""
        return ", ".join(told) + lines

    def _tidy(self, now: float) -> None:
        self._report()
        if self.dirty and now >= self.write_at:
            self.dirty = False
            self.write_at = now + STATE_EVERY_S
            try:
                self.folder.write_state(self.state())
            except OSError as error:
                say(f"state.json could not be written: {error}")
        if now >= self.logs_at:
            self.logs_at = now + LOGS_EVERY_S
            logs.bound(self.folder.log("keeper").parent)

    def _how_far(self) -> Report:
        agents = [job for job in self.jobs.values() if job.nodes]
        return Report(
            phase=self.phase,
            zookeeper="zookeeper_ready" in self.marks,
            registered=sum(len(job.ready) for job in agents),
            nodes=len(self.nodes),
            elected=sum(len(by_rack) for by_rack in self.sight.seen.leaders.values()),
            leaders=len({(node.rack, node.layer) for node in self.nodes}),
            api="api" in self.jobs and bool(self.jobs["api"].ready),
            error=self.error,
        )

    def _report(self) -> None:
        """To the front, when it changed. What it does not read in time is not worth waiting for."""
        if self.leash and (report := self._how_far()) != self.last_report:
            self.last_report = report
            with contextlib.suppress(OSError):
                self.leash.send(msgspec.json.encode(report))

    def state(self) -> LocalState:
        api = self.jobs.get("api")
        zk_ready = "zookeeper_ready" in self.marks and not self.sight.seen.trouble
        zookeeper = Service(self.place.zk if self.place else "", None, zk_ready)
        where = "http://{}:{}".format(*self.place.api.outside) if self.place else ""
        service = Service(where, api.process, bool(api.ready), api.ended) if api else Service(where, None, False)
        views = tuple(view for job in self.jobs.values() for view in job.views())
        stay = [job for job in self.jobs.values() if job.unseen and not job.once]
        companions = {job.name: Service("", job.process, bool(job.ready), job.ended) for job in stay}
        return LocalState(
            self.phase, str(self.folder.path), self.spec, self.me, zookeeper, service, views, self.sight.seen.leaders,
            self.marks, self.error, companions,
            self.crew.zookeepers.views(self.sight.seen.modes, self.sight.seen_from),
            self.crew.network.names.endpoints, self.crew.network.rules,
        )  # fmt: skip


def _helper(one: Helper) -> Job:
    return Job(one.name, one.body, unseen=True, keep=one.keep)


def _weight(job: Job) -> int:
    """What its start counts, of PARALLEL."""
    return -(-len(job.nodes) // SHARING)


def now_ms() -> int:
    return int(time.time() * 1000)


def main(crew: Callable[[LocalSpec], Crew] = RealCrew) -> int:
    leash = int(sys.argv[1])
    spec = msgspec.json.decode(sys.stdin.buffer.read(), type=LocalSpec)
    os.set_inheritable(leash, False)
    return Keeper(spec, crew(spec), socket.socket(fileno=leash)).run()


if __name__ == "__main__":
    sys.exit(main())
