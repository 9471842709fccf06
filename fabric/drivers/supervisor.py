"""The supervisor: the process that is the parent of one agent's instances, and outlives the agent.

Theory of operation. Standard library only, and little of it: start-up and memory count, there is one for each agent.
`detach.py` starts it. One thread and one selector: the agent's connection, SIGCHLD, each instance's output, timers. The
agent comes and goes; with neither agent nor instance for `linger_s`, the supervisor leaves by itself. When its state
directory is deleted, so that nobody could adopt what runs, it ends its instances and leaves.

    STARTING --exec happened--> RUNNING --main process died--> ENDING --nothing of it left--> ENDED --remove--> gone
        \\--exec failed--> forgotten (or the ended attempt before it stands again)

Wire: JSON lines over `<state>/supervisor.sock`. Requests {"id", "op": "list" | "start" | "stop" | "remove", …} are
answered by {"id", "ok"} or {"id", "error", …}. {"event": "record"} lines precede the answer to "list"; after it
{"event": "exit"} lines say what ends.

A record on disk that has not ended, found at start, belonged to a supervisor that died. What is left of such an
instance is killed, judged by pid, start time and boot id, and by the mark below; it is reported as lost.

Containment, without pid namespaces or cgroups: an instance is a session and a process group of its own, is KILLed by
the kernel when the supervisor dies (PR_SET_PDEATHSIG; a set-user-id entry point loses that), and its orphans become the
supervisor's children (PR_SET_CHILD_SUBREAPER). When the main process ends, its group is killed, then every orphan whose
environment carries the instance's FABRIC_INSTANCE_DIR, until none is left. Not caught at once: a process that left the
group *and* wiped that variable runs on until no instance of this agent runs; then every orphan is killed. And when the
supervisor itself is killed, only main processes die with it; the others are killed when the agent starts the next
supervisor, which it does at once. It is no sandbox: an instance may do to its neighbours, and to the files here, what
the agent's user may.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import signal
import time

from fabric.drivers import procfs
from fabric.drivers.instance import ENDED, ENDING, INSTANCES, READ_BYTES, RUNNING, STARTING, Instance, libc
from fabric.drivers.lines import AgentPort
from fabric.drivers.reactor import Reactor

TYPE_CHECKING = False  # as in instance.py
if TYPE_CHECKING:
    from fabric.drivers.instance import Message, RequestId

PROTOCOL = 1
SOCKET = "supervisor.sock"
REMOVED = ".removed-"
REST_S = 0.01  # after a full read of output: a flood costs at most 6.4 MB/s of copying
LAST_READS = 16  # for the last words: more than a pipe holds, but an orphan may go on writing
KILL_WAIT_S = 5.0  # how long a killed process may take to vanish
TERM_GRACE_S = 5.0  # for the instances, when the supervisor itself is told to stop
MUTE_S = 0.1  # how long an orphan may show no environment at all, as it executes or dies
HOME_CHECK_S = 2.0  # between looks whether the state directory is still there
SWEEP_S = 0.02  # between looks for orphans of what is ending, should no SIGCHLD come
PR_SET_CHILD_SUBREAPER = 36


class Supervisor:
    def __init__(self, state: str, lifeline: int | None, log_bytes: int, linger_s: float) -> None:
        self.root = os.path.join(state, INSTANCES)
        self.log_bytes, self.linger_s, self.lifeline = log_bytes, linger_s, lifeline
        self.instances: dict[str, Instance] = {}
        self.mains: dict[int, Instance] = {}  # by pid, until reaped
        self.reactor = Reactor()
        self.agent = AgentPort(self.reactor.selector, self._answer)
        self.listed = 0  # the connection that knows the table, and may be told of changes
        self.alone_since = time.monotonic()
        self.next_sweep = 0.0
        self.mute: dict[tuple[int, int], float] = {}  # orphans without an environment, by pid and start: since when
        self.boot_id = procfs.boot_id()
        self.leaving = False

    # --- life ----------------------------------------------------------------------------------------------------

    def listen(self) -> None:
        """Judge what an earlier supervisor left, then listen. The current directory must be the state directory."""
        self._adopt()
        self.agent.bind(SOCKET)

    def _adopt(self) -> None:
        mains = {}
        for name in os.listdir(self.root):
            if name.startswith(REMOVED) or not os.path.isdir(os.path.join(self.root, name)):
                continue
            one = self.instances[name] = Instance.from_disk(os.path.join(self.root, name))
            if not one.record["ended"]:
                if one.pid and one.record["boot_id"] == self.boot_id:
                    mains[one.pid] = one.record["start_time"]
                one.ended(lost=True)
        lost = [one for one in self.instances.values() if one.record["lost"]]
        if lost:
            procfs.kill_others(
                lambda pid: procfs.start_time(pid) == mains.get(pid) or self._owner(procfs.marked_directory(pid)),
                KILL_WAIT_S,
            )
        for one in lost:
            self._save(one)

    def run(self) -> None:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        self.reactor.watch(reader, lambda: self._signalled(reader))
        self.agent.watch()
        if self.lifeline is not None:
            self.reactor.watch(self.lifeline, self._lifeline_ready)
        self._check_home()
        while (wait_s := self._patience_s()) > 0:
            self.reactor.turn(wait_s)
        with contextlib.suppress(OSError):
            os.unlink(SOCKET)

    def _patience_s(self) -> float:
        """How long to wait for something to happen before leaving."""
        now = time.monotonic()
        left = self.mains or any(one.state == ENDING for one in self.instances.values())
        if left or (self.agent.connected and not self.leaving):
            self.alone_since = now
            return math.inf
        return 0.0 if self.leaving else self.alone_since + self.linger_s - now

    def _signalled(self, reader: int) -> None:
        numbers = os.read(reader, 4096)
        self._reap()
        if signal.SIGTERM in numbers:
            self._leave(TERM_GRACE_S)

    def _lifeline_ready(self) -> None:
        """End of file: whoever held the other end is gone, and nothing may outlive it."""
        assert self.lifeline is not None
        if not os.read(self.lifeline, 4096):
            self.reactor.unwatch(self.lifeline)
            self._leave(0.0)

    def _check_home(self) -> None:
        """Without the state directory no agent finds us again, and what we run is nobody's."""
        if os.path.isdir(self.root):
            self.reactor.later(HOME_CHECK_S, self._check_home)
        else:
            self._leave(TERM_GRACE_S)

    def _leave(self, grace_s: float) -> None:
        self.leaving = True
        for one in list(self.instances.values()):
            if one.live:
                self._terminate(one, grace_s)
        self.reactor.later(grace_s + KILL_WAIT_S, lambda: os._exit(1))  # what can't be killed must not keep us

    # --- requests ------------------------------------------------------------------------------------------------

    def _answer(self, message: Message) -> None:
        operations = {"list": self._list, "start": self._start, "stop": self._stop, "remove": self._remove}
        # The connection is part of a request's id: an answer that took long must not reach the next agent.
        operations[message["op"]]({**message, "id": (self.agent.connections, int(message["id"]))})

    def _list(self, message: Message) -> None:
        for one in list(self.instances.values()):
            self.agent.send(event="record", **one.record)
        self.listed = self.agent.connections
        self._reply(message["id"], ok={"protocol": PROTOCOL, "pid": os.getpid()})

    def _report_exit(self, one: Instance) -> None:
        if self.listed == self.agent.connections:
            self.agent.send(event="exit", **one.record)

    def _reply(self, request: RequestId, **answer: object) -> None:
        if request[0] == self.agent.connections:
            self.agent.send(id=request[1], **answer)

    # --- start ---------------------------------------------------------------------------------------------------

    def _start(self, message: Message) -> None:
        name, attempt, request = str(message["instance"]), int(message["attempt"]), message["id"]
        if "/" in name or name.startswith("."):
            raise ValueError(name)
        known = self.instances.get(name)
        if self.leaving:
            self._reply(request, error="the supervisor is being stopped")
        elif known and known.record["attempt"] >= attempt and known.state == STARTING:
            known.starts.append(request)
        elif known and known.record["attempt"] >= attempt:
            self._reply(request, ok=known.record)
            if known.state == ENDED:
                self._report_exit(known)
        elif known and known.state != ENDED:
            found = f"attempt {known.record['attempt']} has not ended (pid {known.pid}): stop it first"
            self._reply(request, error=found)
        else:
            one = self.instances[name] = Instance(os.path.join(self.root, name), attempt)
            one.before = known
            one.starts.append(request)
            try:
                one.spawn(message, self.log_bytes)
            except OSError as error:
                self._start_failed(one, error.errno or errno.EIO, "prepare")
            else:
                self.mains[one.pid] = one
                self.reactor.watch(one.output, lambda: self._output_ready(one))
                self.reactor.watch(one.exec_result, lambda: self._exec_result(one))

    def _exec_result(self, one: Instance) -> None:
        said = os.read(one.exec_result, 100).decode()
        self.reactor.unwatch(one.exec_result)
        os.close(one.exec_result)
        one.exec_result = -1
        if said:
            number, _, step = said.partition(" ")
            os.waitpid(one.pid, 0)  # it has nothing left to do but to exit
            del self.mains[one.pid]
            self.reactor.unwatch(one.output)
            self._start_failed(one, int(number), step)
            return
        one.state, one.before = RUNNING, None
        one.record |= {"start_time": procfs.start_time(one.pid), "boot_id": self.boot_id, "started_at": time.time()}
        self._save(one)
        for request in one.starts:
            self._reply(request, ok=one.record)
        one.starts.clear()

    def _start_failed(self, one: Instance, number: int, step: str) -> None:
        one.close()
        if one.before:
            self.instances[one.name] = one.before
            self._save(one.before)
        else:
            del self.instances[one.name]
            one.discard()
        for request in one.starts:
            self._reply(request, error=os.strerror(number), errno=number, step=step)
        if not any(connection == self.agent.connections for connection, _ in one.starts):
            # This agent did not ask for it, but may have found it in the list, as running.
            one.record |= {"ended": True, "code": 127, "log_tail": f"cannot {step}: {os.strerror(number)}"}
            self._report_exit(one)
        for request in one.stops:
            self._reply(request, ok=None)

    def _save(self, one: Instance) -> None:
        try:
            one.save()
        except OSError as error:  # the last saved record stands; what it says is put right by the next supervisor
            procfs.complain(f"cannot write the record of {one.name}: {error}")

    # --- output and end ------------------------------------------------------------------------------------------

    def _output_ready(self, one: Instance) -> None:
        fd = one.output
        size = one.read_output()
        if size == 0:
            self.reactor.unwatch(fd)
            os.close(fd)
            one.output = -1
        elif size == READ_BYTES:
            self.reactor.unwatch(fd)
            self.reactor.later(REST_S, lambda: self._rested(one))

    def _rested(self, one: Instance) -> None:
        if one.output >= 0:
            self.reactor.watch(one.output, lambda: self._output_ready(one))

    def _reap(self) -> None:
        """Look at each dead child before it is reaped: until then its pid, and its group's, are its own."""
        orphan_died = False  # then its children are orphans now
        while (dead := procfs.dead_child()) is not None:
            one = self.mains.get(dead)
            if one and one.state == STARTING:
                self._exec_result(one)
                if dead not in self.mains:
                    continue  # it failed to become the instance, and is reaped
            if one:
                self._main_died(one)
            else:
                os.waitpid(dead, 0)
                orphan_died = True
        if orphan_died or any(one.state == ENDING for one in self.instances.values()):
            self._sweep()

    def _main_died(self, one: Instance) -> None:
        one.signal(signal.SIGKILL)  # the rest of its group
        for _ in range(LAST_READS):
            if one.output < 0 or one.read_output() <= 0:
                break
        code = os.waitstatus_to_exitcode(os.waitpid(one.pid, 0)[1])
        del self.mains[one.pid]
        one.ended(code=code if code >= 0 else None, signal=-code if code < 0 else None)
        self.reactor.unwatch(one.output)
        one.close()
        one.state = ENDING
        one.kill_deadline = time.monotonic() + KILL_WAIT_S
        self._save(one)

    def _owner(self, mark: str | None) -> str | None:
        """The name of the instance that a process with this mark belongs to, if it is one of ours."""
        home = os.path.dirname(mark or "")
        return os.path.basename(home) if os.path.dirname(home) == self.root else None

    def _sweep(self) -> None:
        """Kill orphans whose instance does not run; what is ENDING has ENDED when it has none left."""
        now = time.monotonic()
        nothing_runs = not any(one.live for one in self.instances.values())
        mute, self.mute = self.mute, {}
        held: set[str | None] = set()
        for pid in procfs.children() - self.mains.keys():
            state, _, start = procfs.process_stat(pid)
            if state in ("", "Z"):
                held.add(None)  # it died since: what it had may have become ours after we asked
                continue
            mark = procfs.marked_directory(pid)
            name = self._owner(mark)
            owner = self.instances.get(name) if name else None
            if owner and owner.live:
                continue
            if name is None and not nothing_runs:
                if mark is None:
                    since = self.mute[pid, start] = mute.get((pid, start), now)
                    if now - since < MUTE_S:
                        held.add(None)  # whose it is will be seen
                continue
            with contextlib.suppress(PermissionError):
                os.kill(pid, signal.SIGKILL)  # our child, not reaped: still the same process
            held.add(name)
        for one in list(self.instances.values()):
            # Killed, an orphan that hangs in the kernel runs no code of its own again: past the deadline it is let be.
            if one.state == ENDING and (not held & {one.name, None} or now > one.kill_deadline):
                one.state = ENDED
                self._report_exit(one)
                for request in one.stops:
                    self._reply(request, ok=None)
                one.stops.clear()
        if held and now >= self.next_sweep:
            self.next_sweep = now + SWEEP_S
            self.reactor.later(SWEEP_S, self._reap)

    # --- stop and remove -----------------------------------------------------------------------------------------

    def _stop(self, message: Message) -> None:
        one = self.instances.get(str(message["instance"]))
        if one is None or one.state == ENDED:
            self._reply(message["id"], ok=None)
            return
        one.stops.append(message["id"])
        if one.live:
            self._terminate(one, float(message["grace_s"]))

    def _terminate(self, one: Instance, grace_s: float) -> None:
        def act(number: int) -> None:
            if one.pid in self.mains and self.mains[one.pid] is one:
                one.signal(number)

        act(signal.SIGTERM if grace_s > 0 else signal.SIGKILL)
        act(signal.SIGCONT)  # a stopped process does not hear TERM
        self.reactor.later(grace_s, lambda: act(signal.SIGKILL))
        self.reactor.later(grace_s + KILL_WAIT_S, lambda: self._give_up(one))

    def _give_up(self, one: Instance) -> None:
        if one.live:
            for request in one.stops:
                self._reply(request, error=f"pid {one.pid} is still there {KILL_WAIT_S:g} s after KILL")
            one.stops.clear()

    def _remove(self, message: Message) -> None:
        """Out of sight by a rename, which takes no time; the agent deletes what is below."""
        one = self.instances.get(str(message["instance"]))
        if one and one.state != ENDED:
            self._reply(message["id"], error=f"{one.name} has not ended (pid {one.pid}): stop it first")
            return
        trash = os.path.join(self.root, f"{REMOVED}{time.time_ns()}")
        if one:
            try:
                os.rename(one.home, trash)
            except FileNotFoundError:
                pass  # as was wanted
            except OSError as error:
                self._reply(message["id"], error=f"cannot rename {one.home}: {error.strerror}")
                return
            del self.instances[one.name]
        self._reply(message["id"], ok={"trash": trash})
