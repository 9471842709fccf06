"""`fabric bootstub` as a process: a real repository, a real directory, kill -9, and what a person gets told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from deploy import bmp
from deploy.directory import Directory
from deploy.discovery import discover, parse_group
from deploy.messages import AnyDeployMessage, BipAnswer, BipCall, Charge, Parent, deploy_codec
from deploy.repository.process import bind, own_url
from deploy.repository.process import start as serve
from deploy.stub.processes import Strays
from deploy.stub.settings import EXIT_NAME_TAKEN
from fabric.records import encode
from fabric.runtime.bus import Bus, new_context
from tests.unit.runtime.until import until
from zk import paths
from zk.client import TreeClient
from zk.session_tree import SessionTree

pytestmark = pytest.mark.system

FABRIC = [sys.executable, "-m", "deploy.cli.main"]
KEY = "ab" * 32
GROUP = "239.255.76.9:17609"

INFORMATION = """\
<repository-information>
  <managent-code>
    <entry><pattern path="*/counter"/><ref url="code/managent"/></entry>
    <entry><pattern path="*/class"/><ref url="code/SimpleAgent.py"/></entry>
  </managent-code>
  <install-config/>
  <managent-config>
    <entry><pattern path="*/counter"/><ref url="counter.xml"/></entry>
    <entry><pattern path="*/class"/><ref url="class.xml"/></entry>
  </managent-config>
</repository-information>
"""
COUNTER = f"""#!{sys.executable} -IS
import os, sys, time
sys.path.insert(0, {str(Path(bmp.__file__).parent)!r})
from bmp import Link
link, count = Link(), 0
print(os.environ["COLOR"], *sys.argv[1:], flush=True)
while link.checkpoint():
    count += 1
    print(count, flush=True)
    time.sleep(0.005)
"""


def described(folder: Path) -> Path:
    (folder / "code").mkdir(parents=True)
    (folder / "repository.xml").write_text(INFORMATION)
    (folder / "code" / "managent").write_text(COUNTER)
    (folder / "code" / "SimpleAgent.py").write_text("class SimpleAgent:\n  def activate(self): ...\n")
    (folder / "counter.xml").write_text(
        '<configuration><env-params><env name="COLOR" value="red"/></env-params>'
        '<arg-params><arg name="PORT" value="7078"/></arg-params><managent control="bmp"/></configuration>'
    )
    (folder / "class.xml").write_text('<configuration><managent class="SimpleAgent"/></configuration>')
    return folder


class Stub:
    """A process, and an initiator that is the test."""

    def __init__(
        self, folder: Path, bus: Bus[AnyDeployMessage], heard: list[AnyDeployMessage], repository: str
    ) -> None:
        self.folder, self.bus, self.heard, self.repository = folder, bus, heard, repository
        self.address = ""
        self.process: subprocess.Popen[str] | None = None
        self._calls = 0

    async def start(self, *options: str) -> None:
        key = self.folder.parent / "cluster.key"
        key.write_text(KEY)
        key.chmod(0o600)
        words = ["bootstub", "--name", "s1", "--dir", str(self.folder), "--domain", "/site", "--key-file", str(key)]
        line = await asyncio.to_thread(self._started, [*FABRIC, *words, *options])
        assert line.startswith("boot stub s1 at tcp://127.0.0.1:")
        self.address = line.split()[-1]

    def another(self, *options: str) -> tuple[int, str]:
        """One more with its name, in a folder of its own: its exit code, and what it said."""
        key = self.folder.parent / "cluster.key"
        words = ["bootstub", "--name", "s1", "--dir", str(self.folder.parent / "another"), "--key-file", str(key)]
        ended = subprocess.run([*FABRIC, *words, *options], capture_output=True, text=True, timeout=60)
        return ended.returncode, ended.stderr

    def _started(self, words: list[str]) -> str:
        """Its first line."""
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    async def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        with self.process:
            return await asyncio.to_thread(self.process.wait, 30)

    async def command(self, verb: str, path: str) -> BipAnswer:
        self._calls += 1
        call = BipCall(
            f"c{self._calls}",
            verb,  # type: ignore[arg-type]
            path,
            1,
            1,
            Parent("/site", self.bus.address),
            Charge(self.repository),
        )
        again_at = 0.0
        loop = asyncio.get_running_loop()

        def answered() -> BipAnswer | None:
            nonlocal again_at
            if loop.time() >= again_at:
                again_at = loop.time() + 0.2
                self.bus.send(self.address, call)
            answers = [one for one in self.heard if isinstance(one, BipAnswer) and one.call == call.call]
            return next((one for one in answers if one.outcome != "running"), None)

        return await until(answered, 30, f"{verb} {path}")

    def log(self, path: str) -> list[str]:
        file = self.folder / "logs" / f"{path[1:].replace('/', '+')}.log"
        return file.read_text().splitlines() if file.exists() else []

    def ticks(self) -> list[int]:
        return [int(line) for line in self.log("/site/counter") if line.isdecimal()]


def assert_contiguous(ticks: list[int]) -> None:
    assert ticks == list(range(1, len(ticks) + 1))


@contextlib.asynccontextmanager
async def stub(tmp_path: Path) -> AsyncIterator[Stub]:
    context = new_context()
    heard: list[AnyDeployMessage] = []
    codec = deploy_codec(bytes.fromhex(KEY))
    bus = Bus(context, codec, "00000000000000aa", on_message=lambda sender, message: heard.append(message))
    listener = bind("127.0.0.1", 0)
    server = await serve(described(tmp_path / "repository"), listener, own_url(listener))
    here = Stub(tmp_path / "stub", bus, heard, f"{own_url(listener)}repository")
    try:
        yield here
    finally:
        if here.process is not None and here.process.poll() is None:
            await here.end(signal.SIGKILL)
        await Strays().kill(lambda directory: directory.startswith(str(tmp_path)))
        bus.close()
        await server.close()
        await asyncio.to_thread(context.term)


def test_a_managent_outlives_kill_9_of_its_boot_stub_and_loses_no_tick(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stub(tmp_path) as here:
            await here.start()
            answer = await here.command("deploy", "/site/counter")
            assert (answer.outcome, answer.reason) == ("done", "")
            assert [span.step for span in answer.spans] == [2, 3, 4, 3, 5, 6]
            assert (await here.command("deploy", "/site/class")).outcome == "done"
            await until(lambda: len(here.ticks()) > 3)
            assert here.log("/site/counter")[0] == "red PORT=7078"
            await here.end(signal.SIGKILL)
            seen = len(here.ticks())
            await until(lambda: len(here.ticks()) > seen + 3, what="it runs on alone")
            await here.start()
            answer = await here.command("deactivate", "/site/counter")
            assert (answer.outcome, answer.life) == ("done", "passive")
            assert (await here.command("deactivate", "/site/class")).outcome == "done", "made anew, and active again"
            assert (await here.command("activate", "/site/counter")).outcome == "done"
            seen = len(here.ticks())
            await until(lambda: len(here.ticks()) > seen + 3)
            assert_contiguous(here.ticks())
            for verb in ("shutdown", "uninstall"):
                assert (await here.command(verb, "/site/counter")).outcome == "done"
            assert os.listdir(here.folder / "managents") == ["site+class"]
            assert await here.end(signal.SIGTERM) == 0

    asyncio.run(scenario())


def test_it_takes_the_programs_along_when_it_is_told_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with stub(tmp_path) as here:
            await here.start("--stop-managents")
            assert (await here.command("deploy", "/site/counter")).outcome == "done"
            assert await here.end(signal.SIGTERM) == 0
            seen = here.ticks()
            await here.start()
            answer = await here.command("start", "/site/counter")
            assert (answer.outcome, answer.life) == ("done", "active")
            await until(lambda: len(here.ticks()) > len(seen))
            assert here.ticks()[len(seen)] == 1, "it ended with its boot stub, and began anew"

    asyncio.run(scenario())


def test_it_registers_in_the_directory_and_answers_discovery(tmp_path: Path, chroot: str) -> None:
    async def scenario() -> None:
        async with stub(tmp_path) as here:
            await here.start("--directory", chroot, "--answer-discovery", GROUP)
            found = await discover(parse_group(GROUP, "127.0.0.1"), bytes.fromhex(KEY), 0.5)
            assert [(one.name, one.address, one.by) for one in found.records] == [("s1", here.address, "discovery")]
            tree = SessionTree(chroot)
            await tree.open(30)
            try:
                stubs = Directory(TreeClient(tree)).stubs
                loop = asyncio.get_running_loop()
                give_up = loop.time() + 20
                while (record := await stubs.get("s1")) is None:
                    assert loop.time() < give_up
                assert (record.address, record.domain, record.by) == (here.address, "/site", "boot")
                await TreeClient(tree).set(paths.stub("s1"), encode(msgspec.structs.replace(record, host="elsewhere")))
                code, said = await asyncio.to_thread(here.another, "--directory", chroot)
                assert code == EXIT_NAME_TAKEN, said
                assert f"found it taken by one on elsewhere ({here.address}), which answers: give one" in said
                again = await stubs.get("s1")
                assert again is not None
                assert (again.host, again.address) == ("elsewhere", here.address)
            finally:
                await tree.close()
            assert await here.end(signal.SIGTERM) == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--name", "no/name"], 64, "--name: expected up to 64 letters"),
        (["--domain", "/site/.."], 64, "--domain: managent id: expected parts"),
        (["--listen", "nowhere"], 64, "--listen: expected an address"),
        (["--listen", "0.0.0.0:0"], 64, "expected the cluster's key, since others reach 0.0.0.0:0"),
        (["--key-file", "/no/such/key"], 64, "expected a readable file"),
        (["--directory", "::::"], 64, "--directory: "),
        (["--answer-discovery", "239.255.76.1:7601"], 64, "expected --key-file too"),
        (["--count", "0"], 64, "expected a whole number from 1 to 1000"),
        (["--dir", "/proc/nothing"], 1, "boot stub: "),
    ],
)
def test_what_is_wrong_is_one_line_and_no_traceback(words: list[str], code: int, said: str) -> None:
    ended = subprocess.run([*FABRIC, "bootstub", *words], capture_output=True, text=True, timeout=60)
    assert ended.returncode == code
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_help_has_examples_and_answers_at_once() -> None:
    script = (
        "import json, sys; from deploy.cli.main import main\n"
        "try: main(['bootstub', '--help'])\n"
        "except SystemExit: pass\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "fabric bootstub --name r1c01 --domain /site/r1" in ended.stdout
    assert not {"zmq", "kazoo", "msgspec"} & set(json.loads(ended.stderr))
