"""Measures how soon a fabric of real processes is well again after a failure, and writes that into bench/RESULTS.md.

    python -m bench.failures [--trials 10] [--session 2] [--only LETTER ...] [--no-write]

Each is the time from the failure (the moment of the signal, or the one that the process wrote down before it killed
itself) to a state that is seen from outside, by the API or in the system's table of processes:

    a  a rack leader is killed                  another one leads, and answers for the rack
    b  a coordinator is killed, its claim made  the deployment is at rest, all of it running
    c  a compute node dies, instances and all   all its instances run elsewhere
    d  a holder of an image is killed           the image has two verified holders among the living
    e  the ensemble's leader is killed          the first request after it is running
    x  a rack leader leaves in order (TERM)     another one leads, and answers for the rack

The floor of a to d is ZooKeeper's: nobody is gone before the session has timed out. Of c there is lost_after_s as well
(0 here), of d `repair_grace_s`, which a restart is given; of e a request with nothing killed is measured beside it.
After the last trial the whole is compared (audit): what is doubled, orphaned or lacking is counted.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import signal
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from bench.failures_report import KINDS, Figures, report
from bench.results import write
from fabric.cli import views
from fabric.cli.client import Api
from fabric.cli.exits import Failure
from fabric.drivers.procfs import all_pids, marked_directory
from fabric.local.harness import LocalFabric
from fabric.roles.settings import Settings
from fabric.runtime import stepping
from fabric.runtime.stepping import Armed

WAIT_S = 90.0
POLL_S = 0.01
COUNT = 12
IMAGE, FRESH = "bench", "bench-fresh"
ENTRYPOINT = b"#!/bin/sh\nexec sleep 1000000\n"


@dataclass
class Bench:
    """One fabric, and what was done to it. `requests` that were accepted; `lost`: that did not end in "running"."""

    fabric: LocalFabric
    api: Api
    session_s: float
    requests: int = 0
    lost: int = 0
    took: dict[str, list[float]] = field(default_factory=dict)
    calm: list[float] = field(default_factory=list)
    """Requests with nothing killed."""

    # --- what is seen --------------------------------------------------------------------------------------------

    def until(self, done: Callable[[], bool], what: str) -> float:
        """The moment when it became so. An API that can't answer for now does not count. Raises TimeoutError."""
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                if done():
                    return time.time()
            except Failure:
                pass
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {WAIT_S:g} s in vain for {what}")
            time.sleep(POLL_S)

    def racks(self, layer: str) -> dict[str, views.Rack]:
        page = self.api.pages("/v1/racks", 1000).read(views.Page[views.Rack])
        return {one.rack: one for one in page.items if one.layer == layer}

    def whole(self) -> None:
        """All agents are registered and led."""
        up = self.fabric.up

        def done() -> bool:
            state = self.fabric.status()
            led = [one for layer in ("compute", "storage") for one in self.racks(layer).values()]
            return (
                state.registered == len(up.nodes)
                and state.leaders_elected == state.leaders_wanted
                and len(led) == state.leaders_wanted
                and all(one.answered and not one.silent for one in led)
            )

        self.until(done, "all agents to be registered, all racks led")

    def back(self, node: str) -> None:
        self.fabric.restart(node)
        self.whole()

    # --- what users do -------------------------------------------------------------------------------------------

    def deploy(self, count: int = COUNT) -> views.Deployment:
        made = self.api.deploy(
            {"image": IMAGE, "flavor": "Small", "count": count, "lost_after_s": 0}, None
        ).read(views.Deployment)
        self.requests += 1
        return made

    def until_running(self, one: views.Deployment) -> float:
        """Wall-clock time of its end; one that ends otherwise is lost."""
        state = ""

        def done() -> bool:
            nonlocal state
            now = self.api.get(f"/v1/deployments/{one.id}").read(views.Deployment)
            state = now.state if now.final else ""
            return bool(state)

        try:
            at = self.until(done, f"{one.id} to be at rest")
        except TimeoutError:
            state, at = "open", time.time()
        self.lost += state != "running"
        return at

    def delete(self, one: views.Deployment) -> None:
        self.api.delete(f"/v1/deployments/{one.id}")

        def gone() -> bool:
            return self.api.get(f"/v1/deployments/{one.id}").read(views.Deployment).state == "deleted"

        self.until(gone, f"{one.id} to be deleted")

    # --- the failures --------------------------------------------------------------------------------------------

    def leader(self, number: int) -> float:
        """a, x."""
        racks = self.racks("compute")
        rack = sorted(racks)[0]
        old = racks[rack]
        at = time.time()
        self.fabric.front.control.kill(old.leader, number)

        def led() -> bool:
            """By a plan, which is asked of every agent by way of the leaders that there are."""
            found = self.api.get("/v1/leaders").read(views.Page[views.Leader]).items
            if not any(one.rack == rack and one.layer == "compute" and one.epoch > old.epoch for one in found):
                return False
            answers = self.api.plan({"image": IMAGE, "flavor": "Small", "count": 1}).read(views.DryRun)
            return any(one.rack == rack for one in answers.racks) and rack not in answers.silent_racks

        took = self.until(led, f"another leader of {rack}") - at
        self.fabric.wait(lambda: self.fabric.ended(old.leader), f"{old.leader} to end")
        self.back(old.leader)
        return took

    def coordinator(self) -> float:
        """b"""
        folder = self.fabric.folder.faults
        stepping.disarm_all(folder)
        stepping.arm(folder, Armed("coordinator.claimed"))
        one = self.deploy()
        self.until(lambda: bool(stepping.fired(folder)) and stepping.fired(folder)[0].at_ms > 0, "a coordinator to die")
        (fired,) = stepping.fired(folder)
        took = self.until_running(one) - fired.at_ms / 1000
        self.back(fired.node)
        self.delete(one)
        return took

    def node(self) -> float:
        """c: the agent, its supervisor and its instances, all at once, as when the power fails."""
        one = self.deploy()
        self.until_running(one)
        leaders = {rack.leader for rack in self.racks("compute").values()}
        instances = self._instances(one)
        victim = sorted({each.node for each in instances.values()} - leaders)[0]
        theirs = [ordinal for ordinal, each in instances.items() if each.node == victim]
        at = time.time()
        self.fabric.front.control.kill(victim, signal.SIGKILL)
        home = f"{self.fabric.folder.node(victim)}/"
        for pid in all_pids():
            if (marked_directory(pid) or "").startswith(home):
                os.kill(pid, signal.SIGKILL)

        def elsewhere() -> bool:
            now = self._instances(one)
            return all(
                now.get(each) is not None
                and now[each].node != victim
                and now[each].state == "running"
                and os.path.exists(f"/proc/{now[each].pid}")
                for each in theirs
            )

        took = self.until(elsewhere, f"the {len(theirs)} instances of {victim} to run elsewhere") - at
        self.back(victim)
        self.delete(one)
        return took

    def _instances(self, one: views.Deployment) -> dict[int, views.Instance]:
        page = self.api.get("/v1/instances", {"deployment": one.id, "limit": 1000}).read(views.Page[views.Instance])
        return {int(each.id.rpartition(".")[2]): each for each in page.items if each.state == "running"}

    def holder(self) -> float:
        """d: of an image that has just been pushed to two. (When a dead holder is back, the one before has three.)"""
        self._push()
        leaders = {rack.leader for rack in self.racks("storage").values()}
        held = self._image().holders
        victim = next((one for one in held if one not in leaders), held[0])
        at = time.time()
        self.fabric.front.control.kill(victim, signal.SIGKILL)

        def redundant() -> bool:
            return len(set(self._image().holders) - {victim}) >= Settings().redundancy

        took = self.until(redundant, "two holders among the living") - at
        self.back(victim)
        self.api.delete(f"/v1/images/{FRESH}")
        return took

    def _push(self) -> None:
        content = image()
        self.api.upload(FRESH, iter([content]), len(content), None)

    def _image(self) -> views.Image:
        return self.api.get(f"/v1/images/{FRESH}").read(views.Image)

    def ensemble(self) -> float:
        """e: the request is made at once, and repeated as Retry-After says, as `fabric deploy` does."""
        began = time.time()
        one = self.deploy()
        self.calm.append(self.until_running(one) - began)
        self.delete(one)
        victim = self.fabric.zookeeper_leader()
        at = time.time()
        self.fabric.front.control.kill(victim, signal.SIGKILL)
        accepted: list[views.Deployment] = []

        def asked() -> bool:
            accepted.append(self.deploy())
            return True

        self.until(asked, "a request to be accepted")
        took = self.until_running(accepted[0]) - at
        self.fabric.start_zookeepers()
        self.whole()
        self.delete(accepted[0])
        return took

    def do(self, letter: str) -> float:
        how: dict[str, Callable[[], float]] = {
            "a": lambda: self.leader(signal.SIGKILL),
            "b": self.coordinator,
            "c": self.node,
            "d": self.holder,
            "e": self.ensemble,
            "x": lambda: self.leader(signal.SIGTERM),
        }
        self.whole()
        took = how[letter]()
        self.took.setdefault(letter, []).append(took)
        return took


def image() -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for name, content, mode in (("entrypoint", ENTRYPOINT, 0o755), ("data", os.urandom(4 << 20), 0o644)):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), mode
            tar.addfile(member, io.BytesIO(content))
    return whole.getvalue()


def measure(trials: int, session_s: float, only: Sequence[str]) -> tuple[Bench, views.Audit]:
    content = image()
    with (
        LocalFabric(
            racks=3, compute=4, storage=2, zookeepers=3, session_timeout_s=session_s, faults=True
        ) as fabric,
        Api(fabric.api_url) as api,
    ):
        api.upload(IMAGE, iter([content]), len(content), None)
        bench = Bench(fabric, api, session_s)
        for kind in KINDS:
            for trial in range(trials) if kind.letter in only else ():
                print(f"  {kind.letter} {trial + 1} of {trials}: {bench.do(kind.letter):.2f} s", flush=True)
        bench.whole()
        return bench, audit(api)


def audit(api: Api) -> views.Audit:
    """When nothing is being repaired any more, or after a while."""
    found = api.get("/v1/audit").read(views.Audit)
    for _ in itertools.repeat(None, 20):
        if found.clean:
            break
        time.sleep(1)
        found = api.get("/v1/audit").read(views.Audit)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.failures", description="Measures recovery from failures.")
    parser.add_argument("--trials", type=int, default=10, metavar="N", help="of each failure (10)")
    parser.add_argument("--session", type=float, default=2.0, metavar="S", help="ZooKeeper's session timeout (2)")
    letters = [kind.letter for kind in KINDS]
    parser.add_argument("--only", nargs="+", choices=letters, default=letters, metavar="LETTER", help="these alone")
    parser.add_argument("--no-write", action="store_true", help="print the figures only")
    args = parser.parse_args()
    bench, found = measure(args.trials, args.session, args.only)
    figures = Figures(bench.session_s, bench.took, bench.calm, bench.requests, bench.lost)
    section = report(figures, found, " ".join(("python -m bench.failures", *sys.argv[1:])))
    print(section)
    raw: dict[str, Any] = {"took_s": bench.took, "calm_s": bench.calm, "audit": msgspec.to_builtins(found)}
    print(json.dumps(raw))
    if not args.no_write:
        write("failures", section)


if __name__ == "__main__":
    main()
