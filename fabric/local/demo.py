"""`fabric demo`: the whole system in one command, and the proof that it works.

A fabric of 3 racks, each 8 compute and 2 storage agents, each a process of its own, with a ZooKeeper server of its own
(or on an ensemble that the user names, below a chroot of its own). An image of 64 MiB is published; 50 Large instances
are deployed through the HTTP API; each is asked who it is, from outside (demo_check.py); 50 more are deployed, whose
image is on the nodes by then; a summary (demo_report.py). Then everything is taken down, and looked for.

A signal at any moment ends in the same taking down. Exit code: 0 only if everything was as it should be; 2 when the
instances were not all placed; 130 after Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from fabric.local import demo_image
from fabric.local.demo_check import Instance, verify
from fabric.local.display import Stages, say
from fabric.local.folder import passing_path
from fabric.local.front import Front, UpFailed
from fabric.local.harness import everyone
from fabric.local.interrupts import Interrupted, Interrupts
from fabric.local.logs import tail
from fabric.local.spec import make_spec
from fabric.local.state import LocalState, Process
from fabric.local.takedown import strays
from fabric.roles.trace import Run, Trace

if TYPE_CHECKING:
    import httpx

RACKS, COMPUTE, STORAGE = 3, 8, 2
COUNT = 50
FLAVOR = "Large"
IMAGE = "demo"
CALL_WAIT_S = 20.0
IMAGE_WAIT_S = 30.0
REQUEST_WAIT_S = 60.0
TRACE_WAIT_S = 5.0
POLL_S = 0.05
PIECE_BYTES = 1 << 20
ROOM_BYTES = (RACKS * COMPUTE + 4) * (80 << 20)
"""What the demo's folder takes: the image on every compute node and two holders, and a fetch under way."""
GONE_WAIT_S = 5.0
ERROR, NOT_PLACED = 1, 2


class DemoFailed(Exception):
    """Something was not as it should be. `code`: what to exit with."""

    def __init__(self, text: str, code: int = ERROR) -> None:
        super().__init__(text)
        self.code = code


class Published(msgspec.Struct, frozen=True):
    name: str
    digest: str
    size: int
    holders: tuple[str, ...]
    push_s: float


class Asked(msgspec.Struct, frozen=True):
    """One request. `request_s`: from the call of the API to 50 running, as the caller sees it. `verified_s`: after
    that, until each had answered who it is. `running_ms`: wall clock."""

    deployment: str
    request_s: float
    running_ms: int
    verified_s: float
    instances: tuple[Instance, ...]
    run: Run


class Outcome(msgspec.Struct, frozen=True):
    """`total_s`: from starting ZooKeeper to 50 running. `down_s`: taking everything down. `processes`: how many there
    were with all instances; none is left."""

    fabric: LocalState
    image: Published
    first: Asked
    second: Asked
    total_s: float
    processes: int
    down_s: float


def run(zk: str, as_json: bool, keeper_module: str) -> int:
    """Raises UpFailed, FolderError, NotEnded."""
    from fabric.local import demo_report

    folder = passing_path(f"demo-{os.getpid()}", ROOM_BYTES)
    spec = make_spec(folder=folder, racks=RACKS, compute=COMPUTE, storage=STORAGE, zk=zk)
    front = Front(spec, keeper_module)
    with Interrupts() as interrupts:
        demo = _Demo(front, interrupts)
        code = 0
        try:
            front.start()
            with Stages() as stages:
                demo.stages = stages
                demo.play()
        except Interrupted as interrupted:
            code = interrupted.code
            say(f"{interrupted}: taking everything down")
        except (DemoFailed, UpFailed) as failed:
            code = failed.code if isinstance(failed, DemoFailed) else ERROR
            say(f"the demo failed: {failed}")
        began = time.monotonic()
        front.stop()
        left = demo.left()
        down_s = time.monotonic() - began
        if interrupts.number and code == 0:
            code = 128 + interrupts.number
    if left:
        say("left behind: " + ", ".join(left))
        return code or ERROR
    say(f"taken down in {down_s:.1f} s: no process and no file is left")
    if code == 0:
        demo_report.show(demo.outcome(down_s), as_json)
    return code


@dataclass(slots=True)
class _Image:
    """Built beside the coming up of the fabric, on a thread; with it the import of the HTTP client."""

    thread: threading.Thread
    built: list[tuple[BinaryIO, int]]

    @classmethod
    def begin(cls) -> _Image:
        built: list[tuple[BinaryIO, int]] = []

        def work() -> None:
            import httpx  # noqa: F401

            built.append(demo_image.build())

        thread = threading.Thread(target=work, name="image", daemon=True)
        thread.start()
        return cls(thread, built)

    def get(self) -> tuple[BinaryIO, int]:
        self.thread.join(IMAGE_WAIT_S)
        if not self.built:
            raise DemoFailed("the image could not be written: is there room in the temporary folder?")
        return self.built[0]


class _Demo:
    def __init__(self, front: Front, interrupts: Interrupts) -> None:
        self.front, self.interrupts = front, interrupts
        self.stages = Stages()
        self.state: LocalState | None = None
        self.seen: set[Process] = set()
        self.found: list[Any] = []

    def play(self) -> None:
        image = _Image.begin()
        each = f"{COMPUTE} compute and {STORAGE} storage agents"
        say(f"a fabric of {RACKS} racks, each {each}, in {self.front.folder.path}")
        self.state = self.front.wait_up(self.stages.report, self.interrupts)
        file, size = image.get()
        import httpx

        with file, httpx.Client(base_url=self.state.api.where, timeout=CALL_WAIT_S, trust_env=False) as api:
            try:
                self.found.append(self._publish(api, file, size))
                self.found += [self._deploy(api, "instances"), self._deploy(api, "50 more, cached")]
            except httpx.HTTPError as error:
                raise DemoFailed(f"the API at {self.state.api.where} did not answer: {error!r}") from None
            finally:
                with contextlib.suppress(OSError):
                    self.seen = everyone(self.state, strays(self.front.folder, None))

    def _publish(self, api: httpx.Client, file: BinaryIO, size: int) -> Published:
        began = time.monotonic()

        def pieces() -> Iterator[bytes]:
            sent = 0
            while piece := file.read(PIECE_BYTES):
                self.interrupts.check()
                sent += len(piece)
                self.stages.show("image pushed, MiB", min(sent, size - 1) >> 20, size >> 20)
                yield piece

        answer = api.put(f"/v1/images/{IMAGE}", content=pieces(), headers={"Content-Length": str(size)})
        told = _checked(answer, 201)
        self.stages.show("image pushed, MiB", size >> 20, size >> 20)
        holders = tuple(told["holders"])
        if len(holders) < 2 or len({self._rack(holder) for holder in holders}) < 2:
            raise DemoFailed(f"expected two holders of the image in different racks, found {', '.join(holders)}")
        return Published(told["name"], told["digest"], told["size"], holders, time.monotonic() - began)

    def _rack(self, node: str) -> str:
        assert self.state
        return next(view.node.rack for view in self.state.nodes if view.node.name == node)

    def _deploy(self, api: httpx.Client, stage: str) -> Asked:
        self.interrupts.check()
        began = time.monotonic()
        told = _checked(api.post("/v1/deployments", json={"image": IMAGE, "flavor": FLAVOR, "count": COUNT}), 202)
        deployment = str(told["id"])
        while not told["final"]:
            self.interrupts.check()
            if time.monotonic() - began > REQUEST_WAIT_S:
                raise DemoFailed(f"{deployment} is {told['state']} after {REQUEST_WAIT_S:g} s{self._late(api, told)}")
            told = _checked(
                api.get(f"/v1/deployments/{deployment}", params={"wait": "200ms", "index": told["index"]}), 200
            )
            if not told["final"]:
                self.stages.show(stage, min(COUNT - 1, len(self._instances(api, deployment))), COUNT)
        request_s, running_ms = time.monotonic() - began, int(time.time() * 1000)
        if told["state"] != "running" or told["placed"] != COUNT:
            reasons = "; ".join([told["reason"], *told["reasons"]])
            placed = f"{told['placed']} of {COUNT} placed"
            raise DemoFailed(f"{deployment} is {told['state']}, {placed}: {reasons}", NOT_PLACED)
        instances = self._instances(api, deployment)
        self.stages.show(stage, len(instances), COUNT)
        began = time.monotonic()
        problems = verify(
            instances,
            deployment,
            COUNT,
            self.front.folder.node("x").parent,
            lambda right: self.stages.show(f"{stage}, asked", right, COUNT),
        )
        if problems:
            listed = "".join(f"\n  {line}" for line in problems)
            raise DemoFailed(f"not all instances are what they should be:{listed}")
        return Asked(
            deployment, request_s, running_ms, time.monotonic() - began, instances, self._trace(api, deployment)
        )

    def _late(self, api: httpx.Client, told: dict[str, Any]) -> str:
        """Where instances do not run that should, and the end of one such node's log."""
        running = Counter(one.node for one in self._instances(api, told["id"]))
        late = [share["node"] for share in told["plan"] if running[share["node"]] < share["count"]]
        if not late:
            return "; all instances run" if told["plan"] else "; there is no plan yet"
        lines = tail(self.front.folder.log(late[0]))
        return f"; not all run on {', '.join(late)}; the last lines of {late[0]}:\n{lines}"

    def _instances(self, api: httpx.Client, deployment: str) -> tuple[Instance, ...]:
        told = _checked(api.get("/v1/instances", params={"deployment": deployment, "limit": 1000}), 200)
        listed = msgspec.convert(told["items"], type=tuple[Instance, ...])
        return tuple(sorted((one for one in listed if one.state == "running"), key=lambda one: one.ordinal))

    def _trace(self, api: httpx.Client, deployment: str) -> Run:
        """It is written after the record, so it may be late by a moment."""
        deadline = time.monotonic() + TRACE_WAIT_S
        while True:
            runs = msgspec.json.decode(_content(api.get(f"/v1/deployments/{deployment}/trace"), 200), type=Trace).runs
            if runs:
                return runs[-1]
            if time.monotonic() > deadline:
                raise DemoFailed(f"{deployment} has no trace after {TRACE_WAIT_S:g} s")
            self.interrupts.wait(POLL_S)

    def left(self) -> list[str]:
        """What should be gone and is not."""
        deadline = time.monotonic() + GONE_WAIT_S
        ours = strays(self.front.folder, self.state)
        while True:
            alive = {each.pid for each in self.seen if each.alive} | _marked(ours)
            files = [str(path) for path in (self.front.folder.path,) if path.exists()]
            if not (alive or files) or time.monotonic() > deadline:
                return [*(f"pid {pid}" for pid in sorted(alive)), *files]
            with contextlib.suppress(Interrupted):
                self.interrupts.wait(POLL_S)

    def outcome(self, down_s: float) -> Outcome:
        assert self.state
        image, first, second = self.found
        total_s = (first.running_ms - self.state.marks_ms["zookeeper_started"]) / 1000
        return Outcome(self.state, image, first, second, total_s, len(self.seen), down_s)


def _marked(ours: Any) -> set[int]:
    from fabric.drivers.procfs import all_pids, process_stat

    return {pid for pid in all_pids() if ours(pid) and process_stat(pid)[0] not in ("", "Z")}


def _content(answer: httpx.Response, expected: int) -> bytes:
    if answer.status_code != expected:
        asked = f"{answer.request.method} {answer.request.url}"
        raise DemoFailed(f"{asked}: expected {expected}, found {answer.status_code}: {answer.text[:500]}")
    return answer.content


def _checked(answer: httpx.Response, expected: int) -> dict[str, Any]:
    told: dict[str, Any] = msgspec.json.decode(_content(answer, expected))
    return told

