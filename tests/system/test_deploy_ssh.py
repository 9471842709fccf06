"""Boot stubs over ssh, against a real sshd on 127.0.0.1: what comes of each host, once, again, and when it fails."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from deploy.cli import bootstub_install
from deploy.directory import Directory
from deploy.records import StubRecord
from deploy.ssh import bundle
from deploy.ssh.bundle import make_wheel
from deploy.ssh.host import main as host_main
from deploy.ssh.host.processes import listens, running
from fabric.cli.exits import Exit
from fabric.cli.parser import Parser
from tests.system import stub_standin
from tests.system.sshd import Sshd, running_sshd
from tests.waiting import wait_until
from tests.zookeeper import LOCAL, server_session

pytestmark = [pytest.mark.system, pytest.mark.timeout(60)]

FABRIC = [sys.executable, "-m", "deploy.cli.main", "bootstub"]


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


class Site:
    """Hosts of one test, and the commands about them. `said`: of the last one, as JSON."""

    def __init__(self, sshd: Sshd, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.sshd, self.folder, self._capsys = sshd, folder, capsys
        self.file = folder / "hosts.txt"
        self.homes: dict[str, Path] = {}
        self.said: Any = None
        self.errors = ""
        self.key = folder / "cluster.key"
        self.secret = secrets.token_hex(32)
        self.key.write_text(f"{self.secret}\n")
        self.key.chmod(0o600)
        self.env = folder / "env"
        (self.env / "bin").mkdir(parents=True)
        program = f"#!{sys.executable}\n{Path(stub_standin.__file__).read_text()}"
        (self.env / "bin/fabric").write_text(program)
        (self.env / "bin/fabric").chmod(0o755)

    def host(self, name: str, **how: Any) -> Path:
        self.homes[name] = self.sshd.host(f"{name}.{self.folder.name}", **how)
        return self.homes[name]

    def write(self, *lines: str) -> None:
        """Each begins with a host's name, and goes on with what stands after it."""
        parts = [line.partition(" ") for line in lines]
        self.file.write_text("".join(f"{host}.{self.folder.name} {fields}\n" for host, _, fields in parts))

    def words(self, *more: str) -> list[str]:
        words = ["install", *self._common(), "--key-file", str(self.key), "--supervisor", "process"]
        code = [] if "--wheels" in more else ["--python-env", str(self.env)]
        return [*words, "--listen", f"{LOCAL}:0", *code, *more]  # last, since it may end with what comes after --

    def _common(self) -> list[str]:
        words = ["--hosts", str(self.file), "--ssh-config", str(self.sshd.config), "--format", "json"]
        return [*words, "--dir", "~/bootstub"]

    def install(self, *more: str) -> Exit:
        return self._run(self.words(*more))

    def uninstall(self, *more: str) -> Exit:
        return self._run(["uninstall", *self._common(), *more])

    def _run(self, words: Sequence[str]) -> Exit:
        parser = Parser()
        bootstub_install.register(parser.add_subparsers())
        args = parser.parse_args(words)
        run = bootstub_install.install if words[0] == "install" else bootstub_install.uninstall
        self._capsys.readouterr()
        code = Exit(run(args))
        output = self._capsys.readouterr()
        self.said, self.errors = json.loads(output.out), output.err
        assert self.secret not in output.out + output.err
        return code

    def of(self, name: str) -> Any:
        (found,) = [each for each in self.said["hosts"] if each["host"] == f"{name}.{self.folder.name}"]
        return found

    def sets(self) -> dict[str, list[str]]:
        """Without the empty ones."""
        cut = len(self.folder.name) + 1
        return {result: [name[:-cut] for name in names] for result, names in self.said["sets"].items() if names}

    def stub(self, name: str) -> Path:
        return self.homes[name] / "bootstub"

    def starts(self, name: str) -> list[list[str]]:
        return [json.loads(line) for line in (self.stub(name) / "stub/starts").read_text().splitlines()]

    def end(self) -> None:
        """Whatever still runs of the hosts."""
        for home in self.homes.values():
            for record in home.rglob("installed.json"):
                pid = json.loads(record.read_text())["installed"]["pid"]
                if process := running(pid):
                    process.end(5)


@pytest.fixture
def site(sshd: Sshd, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Site]:
    made = Site(sshd, tmp_path, capsys)
    yield made
    made.end()


def test_a_site_is_installed_and_again_changes_only_what_differs(site: Site) -> None:
    for name in ("a", "b", "c"):
        site.host(name)
    site.write("a name=r1c01 domain=/site/r1", "b name=r1c02 domain=/site/r1", "c name=r2c01")

    assert site.install("--check") == Exit.FOUND
    assert site.sets() == {"differs": ["a", "b", "c"]}
    assert not list(site.homes["a"].iterdir()), "a check changes nothing"

    assert site.install("--domain", "/site/r2") == Exit.DONE
    assert site.sets() == {"installed": ["a", "b", "c"]}
    pids = {name: site.of(name)["pid"] for name in site.homes}
    assert all(listens(pid) for pid in pids.values())
    assert [step["name"] for step in site.of("a")["steps"]] == [
        "folder", "environment", "key", "start script", "boot stub",
    ]  # fmt: skip
    key, folder = site.stub("a") / "cluster.key", site.stub("a") / "stub"
    assert (key.stat().st_mode & 0o777, key.read_text().strip()) == (0o600, site.secret)
    assert site.starts("a") == [
        ["bootstub", "--name", "r1c01", "--dir", str(folder), "--domain", "/site/r1", "--listen", f"{LOCAL}:0",
         "--key-file", str(key)],
    ]  # fmt: skip
    assert site.starts("c")[0][6] == "/site/r2"

    assert site.install("--domain", "/site/r2") == Exit.DONE
    assert site.sets() == {"unchanged": ["a", "b", "c"]}
    assert {name: site.of(name)["pid"] for name in site.homes} == pids

    process = running(pids["a"])
    assert process
    process.end(5)
    site.write("a name=r1c01 domain=/site/r1", "b name=r1c02 domain=/site/r3", "c name=r2c01")
    assert site.install("--domain", "/site/r2", "--check") == Exit.FOUND
    assert site.sets() == {"unchanged": ["c"], "differs": ["a", "b"]}
    assert listens(pids["b"]), "a check changes nothing"
    assert site.install("--domain", "/site/r2") == Exit.DONE
    assert site.sets() == {"installed": ["a", "b"], "unchanged": ["c"]}
    assert [len(site.starts(name)) for name in ("a", "b", "c")] == [2, 2, 1]
    assert not listens(pids["b"])
    assert site.starts("b")[1][6] == "/site/r3"


def test_managents_outlive_a_restart_and_an_uninstallation_asks_for_them(site: Site) -> None:
    site.host("a")
    site.write("a name=r1c01")
    assert site.install() == Exit.DONE
    folder = site.stub("a")
    environment = dict(os.environ) | {"MANAGENT_DIR": f"{folder}/stub/managents/site"}
    managent = subprocess.Popen(["sleep", "1000"], env=environment, start_new_session=True)
    try:
        assert site.install("--restart") == Exit.DONE
        assert site.sets() == {"installed": ["a"]}
        assert managent.poll() is None
        assert site.uninstall() == Exit.ERROR
        assert site.sets() == {"failed": ["a"]}
        assert "expected no managent to run here, found 1" in site.of("a")["reason"]
        assert managent.poll() is None
        pid = json.loads((folder / "installed.json").read_text())["installed"]["pid"]
        assert listens(pid)

        assert site.uninstall("--purge") == Exit.DONE
        assert site.sets() == {"removed": ["a"]}
        assert managent.wait(5) == -signal.SIGTERM
        assert running(pid) is None
        assert not folder.exists()
        assert site.uninstall() == Exit.DONE
        assert site.sets() == {"absent": ["a"]}
    finally:
        if managent.poll() is None:
            managent.kill()
            managent.wait(5)


def test_what_is_no_installation_is_left_alone(site: Site) -> None:
    home = site.host("a")
    (home / "bootstub").mkdir()
    (home / "bootstub/thesis.tex").write_text("ten years of work")
    site.write("a")
    for run in (site.install, site.uninstall):
        assert run() == Exit.ERROR
        assert "found also thesis.tex" in site.of("a")["reason"]
    assert [path.name for path in (home / "bootstub").iterdir()] == ["thesis.tex"]


def test_every_host_is_in_exactly_one_set_with_its_reason(site: Site) -> None:
    with closing(socket.create_server((LOCAL, 0))) as taken:
        closed = taken.getsockname()[1]
    site.host("good")
    site.host("noisy", forced="echo Welcome; echo -n You have mail; eval $SSH_ORIGINAL_COMMAND")
    site.host("fails")
    site.host("shellless", forced="echo This account is not available; exit 1")
    site.host("closed", port=closed)
    site.host("impostor", known=False)
    site.host("stranger", allowed=False)
    site.write(
        "good", "noisy name=noisy", "fails name=r1-fails", "shellless", "closed", "impostor", "stranger",
    )  # fmt: skip

    assert site.install("--retries", "1") == Exit.ERROR

    assert site.said["targeted"] == 7
    assert site.sets() == {
        "installed": ["good", "noisy"],
        "failed": ["fails", "shellless"],
        "unreachable": ["closed", "impostor", "stranger"],
    }
    assert "ended" in site.of("fails")["reason"]
    assert site.of("fails")["tail"] == ["r1-fails: expected a better world, found this one"]
    assert site.of("shellless")["tail"] == ["This account is not available"]
    assert "refused" in site.of("closed")["reason"].lower()
    assert "host key" in site.of("impostor")["reason"].lower()
    assert "permission denied" in site.of("stranger")["reason"].lower()
    tries = {name: site.of(name)["tries"] for name in ("good", "fails", "closed", "impostor", "stranger")}
    assert tries == {"good": 1, "fails": 1, "closed": 2, "impostor": 1, "stranger": 1}
    assert len(site.errors.splitlines()) == 7, "a line for each host"


def test_nobody_is_waited_for_without_end(site: Site) -> None:
    site.host("silent")
    site.write("silent name=r1-silent")
    assert site.install("--answer-wait", "0.3") == Exit.ERROR
    assert "expected it to listen within 0.3 s" in site.of("silent")["reason"]
    site.host("hangs", forced="sleep 1000")
    site.write("hangs")
    assert site.install("--time-limit", "1") == Exit.ERROR
    assert site.sets() == {"unreachable": ["hangs"]}
    assert "within 1 s" in site.of("hangs")["reason"]
    wait_until(lambda: not site.sshd.sessions(), what="the hosts' logins to end, also that which hung")


def test_a_host_without_the_python_that_is_wanted_says_so(site: Site) -> None:
    site.host("a")
    site.write("a")
    assert site.install("--python", "/nowhere/python3; touch /tmp/x") == Exit.ERROR
    expected = "expected Python 3.11 or later on the host, found: /nowhere/python3; touch /tmp/x: "
    assert site.of("a")["reason"].startswith(expected)


def test_a_real_boot_stub_is_brought_along_installed_offline_and_registers(
    site: Site, chroot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wheels of what ours needs are empty, but for one that names the folder where the tests have all that."""
    wheels = site.folder / "wheels"
    wheels.mkdir()
    for line in bundle._requirements():
        name = re.split(r"[^A-Za-z0-9-]", line)[0]
        files = {"tests.pth": f"{sysconfig.get_path('purelib')}\n".encode()} if name == "kazoo" else {}
        wheel = make_wheel(name, "9999.0", (), files, {})
        (wheels / f"{name.replace('-', '_')}-9999.0-py3-none-any.whl").write_bytes(wheel)
    monkeypatch.setattr(bundle, "_commands", lambda: {"fabric": "deploy.cli.main:main"})
    site.host("a")
    site.write("a name=r1c01 domain=/site/r1")
    words = ["--wheels", str(wheels), "--directory", chroot, "--", "--log-level", "debug"]

    assert site.install(*words) == Exit.DONE, site.of("a")
    pid = site.of("a")["pid"]
    record = asyncio.run(registered(chroot))
    assert record
    assert (record.pid, record.domain, record.by) == (pid, "/site/r1", "boot")
    (env,) = (site.stub("a") / "envs").iterdir()
    running_words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    assert str(env / "bin/fabric") in running_words
    assert running_words[-3:-1] == ["--log-level", "debug"]
    (installed,) = env.glob("lib/python3*/site-packages/deploy/ssh/host/main.py")
    assert installed.read_bytes() == Path(host_main.__file__).read_bytes()
    assert site.install(*words) == Exit.DONE
    assert site.sets() == {"unchanged": ["a"]}
    assert site.uninstall("--directory", chroot) == Exit.DONE
    assert site.sets() == {"removed": ["a"]}
    assert site.of("a")["reason"].endswith(f"{record.name} taken out of the directory")
    assert running(pid) is None
    assert asyncio.run(registered(chroot)) is None


async def registered(chroot: str) -> StubRecord | None:
    async with server_session(chroot) as session:
        return await Directory(session.client).stubs.get("r1c01")


def test_a_stub_that_runs_must_be_in_the_directory(site: Site, chroot: str) -> None:
    """The stand-in does not register; the test does it in its place."""
    site.host("a")
    site.write("a name=r1c01")
    assert site.install("--directory", chroot, "--answer-wait", "2.5") == Exit.ERROR
    pid = site.of("a")["pid"]
    assert site.of("a")["reason"] == f"boot stub r1c01 runs as process {pid}, but the directory does not have it"
    assert ["--directory", chroot] in [site.starts("a")[0][at : at + 2] for at in range(1, 20, 2)]

    async def register(pid: int) -> None:
        async with server_session(chroot) as session:
            record = StubRecord("r1c01", "127.0.0.1:1", "", "guid", "its host", pid, "boot")
            await Directory(session.client).stubs.register(record)

    asyncio.run(register(pid + 1))
    assert site.install("--directory", chroot, "--check") == Exit.ERROR
    assert f"the directory has one on its host, process {pid + 1}" in site.of("a")["reason"]
    asyncio.run(register(pid))
    assert site.install("--directory", chroot) == Exit.DONE
    assert site.sets() == {"unchanged": ["a"]}


def test_an_uninstallation_leaves_what_managents_made(site: Site) -> None:
    site.host("a")
    site.write("a")
    assert site.install() == Exit.DONE
    for result in ("removed", "absent"):
        assert site.uninstall() == Exit.DONE
        assert site.sets() == {result: ["a"]}
        assert site.of("a")["reason"].startswith(f"kept: {site.stub('a')}/stub")
        assert sorted(path.name for path in site.stub("a").iterdir()) == [".lock", "stub"]
    assert site.install() == Exit.DONE
    assert len(site.starts("a")) == 2


def test_ctrl_c_ends_here_and_on_the_hosts(site: Site) -> None:
    site.host("a")
    site.host("b")
    site.write("a name=r1-silent", "b name=r1c02")
    words = site.words("--answer-wait", "1000", "--parallel", "2")
    command = subprocess.Popen(
        [*FABRIC, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: (site.stub("a") / "stub/starts").exists(), what="a's stub to start")
    assert command.stderr is not None
    assert ".test_ctrl_c" in command.stderr.readline(), "b is done"
    command.send_signal(signal.SIGINT)
    output, errors = command.communicate(timeout=20)
    assert command.returncode == Exit.INTERRUPTED
    site.said = json.loads(output)
    assert site.sets() == {"installed": ["b"], "interrupted": ["a"]}
    assert "Traceback" not in errors
    wait_until(lambda: not site.sshd.sessions(), what="the hosts' logins to end")
    assert site.install("--check") == Exit.FOUND
    assert site.sets() == {"unchanged": ["b"], "differs": ["a"]}
