"""Measures recursive deployment and writes the figures into bench/RESULTS.md.

    python -m bench.deploy [--part growth processes failure ansible] [--no-write]

- growth: the tree of HPL-2001-321, Figure 12, with ten children a level: 111, 1,111 and 11,111 managents, the leaves
  Python classes in 20, 100 and 524 boot stubs; wall time from `apply` to the exact sets, memory, ZooKeeper's requests;
- processes: 11,111 managents, 10,000 of them operating-system processes, against a bare loop that starts the same
  10,000 with the same parallelism, in the same run;
- failure: 26 of the 524 boot stubs (5 %) are killed in the middle, at least ten of them with initiators; then the sets
  must add up, and `resume` must complete the tree;
- ansible: one process on each of 500 targets, against Ansible over local connections (bench/deploy_ansible.py).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench import deploy_ansible
from bench.deploy_report import Bare, Failure, Figures, Measured, report
from bench.deploy_site import POLL_S, Site
from bench.results import commit, machine, write
from deploy.top import Progress, Top
from zk.session_tree import SessionTree

ROUNDS = 3
PARTS = ("growth", "processes", "failure", "ansible")
GROWTH = ((2, 20), (3, 100), (4, 524))
"""(levels of initiators, boot stubs)."""
STUBS, PROCESSES = 524, 2
TARGETS = 500
ROOT_MANAGENT = "/region1"
APPLY_S = 900.0
KILLED, WITH_INITIATORS, ALONE = 26, 10, 60
SLEEPER = "#!/bin/sh\nexec sleep 1000000\n"

_CLASS = """\
class Managent:
    def activate(self):
        self.on = True

    def deactivate(self):
        self.on = False
"""
REGULAR = """\
<configuration>
  <env-params>
    <env name="INTERVAL" value="5"/>
  </env-params>
</configuration>
"""
INITIATOR = """\
<configuration>
  <initiator>
    <children count="10"/>
  </initiator>
</configuration>
"""


def tree(levels: int, code: str) -> dict[str, str]:
    """The repository of Figure 12 with so many levels of initiators. `code`: of the leaves, by its name."""
    leaf = "/**" * (levels + 1)
    initiators = "\n".join(f'      <pattern xpath="{"/**" * level}"/>' for level in range(levels, 0, -1))
    information = f"""\
<repository-information>
  <managent-code>
    <entry>
      <pattern xpath="{leaf}"/>
      <ref url="{code}"/>
    </entry>
  </managent-code>
  <install-config/>
  <managent-config>
    <entry> <!--termination of recursion -->
      <pattern xpath="{leaf}"/>
      <ref url="regular.xml"/>
    </entry>
    <entry> <!--recursive generation -->
{initiators}
      <ref url="initiator.xml"/>
    </entry>
  </managent-config>
</repository-information>
"""
    content = {"managent.py": _CLASS, "managent.sh": SLEEPER}[code]
    return {"repository.xml": information, "regular.xml": REGULAR, "initiator.xml": INITIATOR, code: content}


def lines_of(files: dict[str, str]) -> int:
    """Of XML."""
    return sum(text.count("\n") for name, text in files.items() if name.endswith(".xml"))


FLAT = {
    "repository.xml": """\
<repository-information>
  <managent-code>
    <entry><pattern xpath="/region1/**"/><ref url="install.sh"/><ref url="managent.sh"/></entry>
  </managent-code>
  <install-config/>
  <managent-config>
    <entry><pattern xpath="/region1"/><ref url="site.xml"/></entry>
    <entry><pattern xpath="/region1/**"/><ref url="regular.xml"/></entry>
  </managent-config>
</repository-information>
""",
    "site.xml": '<configuration><initiator parallel="64"><children each="stub"/></initiator></configuration>\n',
    "regular.xml": REGULAR,
    "install.sh": "#!/bin/sh\nmkdir -p data && echo installed >data/state\n",
    "managent.sh": SLEEPER,
}
"""What Ansible is to do too: on each target, an installation that is run, a configuration, a process."""


async def applied(site: Site, on_progress: object = None, resume: bool = False) -> Measured:
    """Apply, and what it took."""
    async with Top.open(site.directory) as top:
        plan = await top.plan(site.repository, roots=(ROOT_MANAGENT,))
        packets, began = site.packets(), time.monotonic()
        told = _Telling(len(plan.target))
        result = await asyncio.wait_for(top.apply(plan, resume=resume, on_progress=told), APPLY_S)
        wall_s = time.monotonic() - began
        told.end()
        return Measured(
            len(plan.target), len(site.names), wall_s, site.packets() - packets, site.memory_mib(), result.sets
        )


class _Telling:
    """A line now and then."""

    def __init__(self, of: int) -> None:
        self._of, self._at = of, time.monotonic()
        self._last = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._last > 1.0:
            self._last = now
            print(f"\r  {progress.counts.active} of {self._of} active, {now - self._at:.0f} s", end="", file=sys.stderr)

    def end(self) -> None:
        print(file=sys.stderr)


def growth() -> list[Measured]:
    found = []
    for levels, stubs in GROWTH:
        with Site(tree(levels, "managent.py"), stubs, PROCESSES) as site:
            found.append(asyncio.run(applied(site)))
    return found


def processes() -> list[tuple[Measured, Bare]]:
    """ROUNDS of both, one after the other, on the same machine in the same minute."""
    return [_processes() for _ in range(ROUNDS)]


def _processes() -> tuple[Measured, Bare]:
    with Site(tree(4, "managent.sh"), STUBS, PROCESSES) as site:
        found = asyncio.run(applied(site))
        running = sum(_is_sleeper(pid) for pid in site.marked())
    return found, bare(running)


def _is_sleeper(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip() == "sleep"
    return False


def bare(count: int) -> Bare:
    """`count` processes of the same script, each in a session and a folder of its own with a log, by PROCESSES loops
    that do nothing else."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="bench-bare-", dir=memory) as name:
        script = Path(name) / "managent.sh"
        script.write_text(SLEEPER)
        script.chmod(0o755)
        began = time.monotonic()
        loops = []
        for number in range(PROCESSES):
            pid = os.fork()
            if pid == 0:
                _start_all(Path(name), script, range(number, count, PROCESSES))
                os._exit(0)
            loops.append(pid)
        for pid in loops:
            os.waitpid(pid, 0)
        wall_s = time.monotonic() - began
        pids = [int(text) for file in Path(name).glob("pids.*") for text in file.read_text().split()]
        alive = sum(Path(f"/proc/{pid}").exists() for pid in pids)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    return Bare(alive, wall_s)


def _start_all(folder: Path, script: Path, numbers: Sequence[int]) -> None:
    pids = []
    for number in numbers:
        home = folder / str(number)
        home.mkdir()
        log = os.open(home / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        actions = [(os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
        environment = {"PATH": "/usr/bin:/bin", "MANAGENT_ID": f"/bare/{number}", "INTERVAL": "5"}
        pids.append(os.posix_spawn(script, [str(script)], environment, file_actions=actions, setsid=True))
        os.close(log)
    (folder / f"pids.{os.getpid()}").write_text(" ".join(map(str, pids)))


def failure() -> Failure:
    rng = random.Random(20011207)
    with Site(tree(4, "managent.py"), STUBS, PROCESSES, alone=ALONE) as site:

        async def middle() -> tuple[Measured, tuple[str, ...], int]:
            going = asyncio.ensure_future(applied(site))
            hosts = await _initiators_on(site)
            with_initiators = [name for name in site.alone if hosts.get(name)]
            victims = with_initiators[:WITH_INITIATORS]
            victims += rng.sample([name for name in site.alone if name not in victims], KILLED - len(victims))
            hosts = await _initiators_on(site)
            for name in victims:
                site.kill(name)
            return await going, tuple(victims), sum(len(hosts.get(name, ())) for name in victims)

        broken, victims, initiators = asyncio.run(middle())
        site.revive(victims)
        return Failure(broken, len(victims), initiators, asyncio.run(applied(site, resume=True)))


async def _initiators_on(site: Site) -> dict[str, list[str]]:
    """Boot stub -> the initiators on it, as soon as the tree is deep enough that ten that are alone have some."""
    from deploy.directory import Directory, Unreadable
    from zk.client import TreeClient

    session = SessionTree(site.directory)
    await session.open(10.0)
    try:
        directory = Directory(TreeClient(session))
        deadline = time.monotonic() + APPLY_S
        while True:
            found: dict[str, list[str]] = {}
            async for table in directory.tables.walk(""):
                if isinstance(table, Unreadable):
                    continue
                for child in table.children:
                    if child.initiator:
                        found.setdefault(child.stub.name, []).append(f"{table.path}/{child.name}")
            if sum(1 for name in site.alone if found.get(name)) >= WITH_INITIATORS or time.monotonic() > deadline:
                return found
            await asyncio.sleep(POLL_S)
    finally:
        await session.close()


def ansible() -> tuple[Measured, deploy_ansible.Best] | None:
    playbook = deploy_ansible.find()
    if playbook is None:
        print("ansible-playbook is not installed: left out (pip install ansible-core)", file=sys.stderr)
        return None
    with Site(FLAT, TARGETS, PROCESSES) as site:
        ours = asyncio.run(applied(site))
    with tempfile.TemporaryDirectory(prefix="bench-code-") as name:
        for file in ("install.sh", "managent.sh"):
            (Path(name) / file).write_text(FLAT[file])
            (Path(name) / file).chmod(0o755)
        return ours, deploy_ansible.measure(playbook, Path(name), TARGETS)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.deploy", description="Measures recursive deployment.")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--no-write", action="store_true", help="print the figures, change no file")
    args = parser.parse_args()
    found = Figures(
        machine(), commit(), datetime.now(UTC).date().isoformat(), lines_of(tree(4, "managent.py"))
    )
    for part in args.part:
        print(f"{part} …", file=sys.stderr)
        if part == "growth":
            found.growth = growth()
        elif part == "processes":
            found.processes = processes()
        elif part == "failure":
            found.failure = failure()
        else:
            found.ansible = ansible()
        section = report(found, part, plot=not args.no_write)
        if section:
            print(section)
            if not args.no_write:
                write(f"deploy-{part}", section)
    return 0


if __name__ == "__main__":
    sys.exit(main())
