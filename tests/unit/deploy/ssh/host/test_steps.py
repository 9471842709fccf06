"""What is done on the host: files, the start script, environments, processes, and a stub kept by systemd."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.ssh.host import environment, supervisors
from deploy.ssh.host.environment import Children
from deploy.ssh.host.files import Folder, Installed, Refused, same, write
from deploy.ssh.host.main import start_script
from deploy.ssh.host.orders import Order
from deploy.ssh.host.processes import Running, listens, mentioning, running
from deploy.ssh.host.supervisors import SystemdSupervisor, unit_text, unit_word
from tests.waiting import wait_until

HOSTILE = "a'b\"c $(touch x) `touch y` ;&|<>\\ %n"
PRINTING = "#!/bin/sh\nfor word; do printf '%s\\n' \"$word\"; done\n"


def sleeper(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*words, "sleep", "1000"], start_new_session=True)


@pytest.fixture
def asleep() -> Iterator[subprocess.Popen[bytes]]:
    process = sleeper()
    yield process
    process.kill()
    process.wait(5)


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


# --- the start script ---------------------------------------------------------------------------------------------


def test_the_start_script_passes_on_any_name(tmp_path: Path) -> None:
    env, folder = tmp_path / HOSTILE / "env", Folder(tmp_path / HOSTILE)
    program(env / "bin/fabric", PRINTING)
    order = Order("install", domain=HOSTILE, listen="-x", directory="a b", roots=("#", "~"), more=("--x", ""))
    script = program(tmp_path / "start", start_script(order, folder, "r1c01", env, True).decode())
    ran = subprocess.run([script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ran.stdout.splitlines() == [
        "bootstub", "--name", "r1c01", "--dir", str(folder.stub), "--domain", HOSTILE, "--listen", "-x",
        "--directory", "a b", "--key-file", str(folder.key), "--allow-root", "#", "--allow-root", "~", "--x", "",
    ]  # fmt: skip
    assert ran.stderr == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted((HOSTILE, "start"))


def test_the_start_script_names_what_was_given_alone(tmp_path: Path) -> None:
    script = start_script(Order("install"), Folder(tmp_path), "a", tmp_path / "env", False).decode()
    assert script.splitlines()[-1] == f"exec {tmp_path}/env/bin/fabric bootstub --name a --dir {tmp_path}/stub"


# --- files --------------------------------------------------------------------------------------------------------


def test_a_secret_is_never_readable_to_others(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("older")
    file.chmod(0o644)
    assert not same(file, b"older", 0o600), "another mode is another file"
    before = os.umask(0)
    try:
        write(file, b"new", 0o600)
    finally:
        os.umask(before)
    assert same(file, b"new", 0o600)
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format": 2}', b'{"format": 1, "installed": {"x": 1}}', b"\xff{"])
def test_a_record_that_cannot_be_read_counts_as_none(tmp_path: Path, content: bytes) -> None:
    folder = Folder(tmp_path)
    folder.record.write_bytes(content)
    assert folder.installed() is None
    folder.note(Installed("a", "p", "process", pid=7))
    assert folder.installed() == Installed("a", "p", "process", pid=7)


def test_a_folder_must_be_ours(tmp_path: Path) -> None:
    assert not Folder(tmp_path / "none").check()
    folder = Folder(tmp_path / "ours")
    folder.make()
    assert folder.check()
    assert (folder.path.stat().st_mode & 0o777) == 0o700
    (folder.path / "bundle.x.unfinished").touch()
    folder.lock()
    assert not list(folder.path.glob("*.unfinished")), "what a killed one left is removed"
    (folder.path / "photo.jpg").touch()
    with pytest.raises(Refused, match=r"found also photo\.jpg; name another folder"):
        folder.check()
    with pytest.raises(Refused, match="Not a directory"):
        Folder(folder.path / "photo.jpg").check()


def test_one_installation_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.ssh.host.files.LOCK_WAIT_S", 0.0)
    Folder(tmp_path).lock()
    with pytest.raises(Refused, match="expected no other installation under way, found one"):
        Folder(tmp_path).lock()


# --- environments -------------------------------------------------------------------------------------------------


def test_a_bundle_has_plain_names_alone(tmp_path: Path) -> None:
    for name in ("../out", "/etc/out", "a/b"):
        with zipfile.ZipFile(tmp_path / "bundle", "w") as archive:
            archive.writestr(name, "x")
        with pytest.raises(Refused, match="expected plain file names"):
            environment.unpack(tmp_path / "bundle", tmp_path / f"to{len(name)}")
    (tmp_path / "bundle").write_bytes(b"no archive")
    with pytest.raises(Refused, match="expected an archive that can be unpacked"):
        environment.unpack(tmp_path / "bundle", tmp_path / "to")


def test_an_environment_that_has_no_fabric_is_refused(tmp_path: Path) -> None:
    for path in (str(tmp_path), "relative/env"):
        with pytest.raises(Refused, match=f"an environment with bin/fabric on this host, found {path}"):
            environment.given(path)


class Scripted(Children):
    """Notes what it should run, and answers with codes in turn."""

    def __init__(self, *codes: int) -> None:
        super().__init__()
        self.codes, self.words = list(codes), list[list[str]]()

    def run(self, words: list[str], limit_s: float) -> tuple[int, tuple[str, ...]]:
        self.words.append(words)
        return self.codes.pop(0), ("the last line",)


def test_an_environment_is_complete_or_made_anew(tmp_path: Path) -> None:
    env, deadline = tmp_path / "env", time.monotonic() + 60
    with zipfile.ZipFile(tmp_path / "bundle", "w") as archive:
        archive.writestr("peer_provisioning_fabric-1-py3-none-any.whl", "x")
        archive.writestr("constraints.txt", "x")
    env.mkdir()
    (env / "of an older try").touch()
    with pytest.raises(Refused, match="installing the packages: expected exit code 0, found 1") as raised:
        environment.make(env, tmp_path / "bundle", False, Scripted(0, 1), deadline)
    assert raised.value.tail == ("the last line",)
    assert not environment.is_complete(env)
    assert not (env / "of an older try").exists()
    for offline in (False, True):
        scripted = Scripted(0, 0)
        environment.make(env, tmp_path / "bundle", offline, scripted, deadline)
        assert environment.is_complete(env)
        assert ("--no-index" in scripted.words[1]) is offline
        assert ("--constraint" in scripted.words[1]) is not offline
        assert scripted.words[1][-1].endswith("packages/peer_provisioning_fabric-1-py3-none-any.whl")
    with zipfile.ZipFile(tmp_path / "bundle", "a") as archive:
        archive.writestr("pip-23-py3-none-any.whl", "x")
    scripted = Scripted(0, 0)
    environment.make(env, tmp_path / "bundle", True, scripted, deadline)
    assert "--without-pip" in scripted.words[0]
    assert scripted.words[1][2] == f"{env}/packages/pip-23-py3-none-any.whl/pip"
    with zipfile.ZipFile(tmp_path / "bundle", "w") as archive:
        archive.writestr("constraints.txt", "x")
    with pytest.raises(Refused, match="expected one wheel of peer-provisioning-fabric, found 0"):
        environment.make(env, tmp_path / "bundle", False, Scripted(0), deadline)


def test_an_older_environment_goes_when_nothing_uses_it(tmp_path: Path) -> None:
    for name in ("now", "used", "unused"):
        (tmp_path / name).mkdir()
    user = subprocess.Popen([sys.executable, "-c", "input()", f"{tmp_path}/used/bin/fabric"], stdin=subprocess.PIPE)
    try:
        wait_until(lambda: user.pid in mentioning(f"{tmp_path}/used", "cmdline"), what="a process of it")
        assert environment.remove_unused(tmp_path, tmp_path / "now") == ["unused"]
    finally:
        user.communicate()
    assert environment.remove_unused(tmp_path, tmp_path / "now") == ["used"]
    assert [path.name for path in tmp_path.iterdir()] == ["now"]


def test_a_program_is_bounded_in_time_with_all_it_started() -> None:
    began = time.monotonic()
    with pytest.raises(Refused, match=r"expected it to end within 0\.3 s") as raised:
        Children().run(["sh", "-c", "echo working; sleep 1000 & wait"], 0.3)
    assert raised.value.tail == ("working",)
    assert time.monotonic() - began < 10


def test_a_program_ends_when_the_operator_is_gone(tmp_path: Path) -> None:
    children, began = Children(), tmp_path / "began"
    codes: list[int] = []

    def run() -> None:
        codes.append(children.run(["sh", "-c", f"touch {began}; sleep 1000 & wait"], 1000)[0])

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(began.exists, what="the program to run")
    children.end()
    thread.join(10)
    assert codes == [-signal.SIGKILL]
    with pytest.raises(Refused, match="the operator is gone"):
        children.run(["true"], 1)


def test_the_last_lines_of_much_output_are_kept() -> None:
    code, tail = Children().run(["sh", "-c", "seq 100000; exit 3"], 30)
    assert code == 3
    assert tail == tuple(str(number) for number in range(99981, 100001))


# --- processes ----------------------------------------------------------------------------------------------------


def test_a_process_is_not_taken_for_another(asleep: subprocess.Popen[bytes]) -> None:
    found = running(asleep.pid)
    assert found
    assert found.lives()
    assert not Running(found.pid, found.started + 1, found.boot).lives(), "its pid came again"
    assert not Running(found.pid, found.started, "another boot").lives()
    Running(found.pid, found.started + 1, found.boot).signal(signal.SIGKILL)
    assert asleep.poll() is None
    assert found.end(5)
    assert running(asleep.pid) is None, "dead, and not yet buried"
    assert running(0) is None
    assert not listens(asleep.pid)


def test_what_does_not_listen_to_term_is_killed() -> None:
    ignoring = "import os, signal, sys; signal.signal(15, signal.SIG_IGN); os.execvp(sys.argv[1], sys.argv[1:])"
    deaf = sleeper(sys.executable, "-c", ignoring)
    found = running(deaf.pid)
    assert found
    line = Path(f"/proc/{deaf.pid}/cmdline")
    wait_until(lambda: line.read_bytes().startswith(b"sleep"), what="it to be deaf")
    assert found.end(0.2)
    assert deaf.wait(5) == -signal.SIGKILL


# --- systemd ------------------------------------------------------------------------------------------------------

SYSTEMCTL = """\
#!/bin/sh
echo "$*" >> {folder}/calls
case "$*" in
  *"restart bad.service"*) echo "Job failed"; exit 1;;
  *show*) echo MainPID=$(cat {folder}/pid 2>/dev/null || echo 0);;
  *stop*|*restart*) exec {folder}/on_change "$@";;
esac
"""


def test_systemd_keeps_a_stub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asleep: subprocess.Popen[bytes]
) -> None:
    """systemctl is a stand-in that tells of a process and notes what it is told."""
    bin_folder = tmp_path / "bin"
    program(bin_folder / "systemctl", SYSTEMCTL.replace("{folder}", str(bin_folder)))
    program(bin_folder / "on_change", f"#!/bin/sh\necho {asleep.pid} > {bin_folder}/pid\n")
    program(bin_folder / "journalctl", "#!/bin/sh\necho the last line\n")
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    folder, units = Folder(tmp_path / "stub"), tmp_path / "units"
    folder.make()
    keeper = SystemdSupervisor(units, True, Children())

    assert not keeper.configured(folder, "r1c01")
    kept = keeper.start(folder, "r1c01")
    assert kept.pid == asleep.pid
    assert keeper.configured(folder, "r1c01")
    unit = keeper.unit("r1c01")
    installed = Installed("r1c01", "p", "systemd", unit)
    assert keeper.kept(installed) == kept
    assert keeper.tail(folder, "r1c01") == ("the last line",)
    keeper.stop(installed)
    keeper.forget(installed)
    assert not list(units.iterdir())
    calls = (bin_folder / "calls").read_text().splitlines()
    assert [call for call in calls if "show" not in call] == [
        "--user daemon-reload", f"--user enable --quiet {unit}", f"--user restart {unit}",
        f"--user stop {unit}", f"--user disable --quiet {unit}", "--user daemon-reload",
    ]  # fmt: skip

    (bin_folder / "pid").write_text("0")
    program(bin_folder / "on_change", "#!/bin/sh\n")
    with pytest.raises(Refused, match="ended at once") as raised:
        keeper.start(folder, "r1c01")
    assert raised.value.tail == ("the last line",)


def test_a_unit_leaves_managents_alone_and_quotes_its_path(tmp_path: Path) -> None:
    text = unit_text(Folder(tmp_path / HOSTILE), "r1c01", False).decode()
    assert "KillMode=process" in text
    assert "WantedBy=multi-user.target" in text
    assert r'a\'b' not in text
    (start,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    assert start == f'ExecStart="{tmp_path}/' + r"""a'b\"c $$(touch x) `touch y` ;&|<>\\ %%n/start""" + '"'
    with pytest.raises(Refused, match="without control characters"):
        unit_word("/a\n[Service]\nExecStartPre=id")


def test_without_systemd_a_process_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(supervisors, "SYSTEMD_RUNS", tmp_path / "none")
    assert supervisors.choose("auto", Children()).name == "process"
    with pytest.raises(Refused, match="expected systemd to keep the boot stub, found: systemd does not run"):
        supervisors.choose("systemd", Children())


def test_users_units_must_outlive_the_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(supervisors, "SYSTEMD_RUNS", tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: 65534)
    program(tmp_path / "loginctl", "#!/bin/sh\necho Access denied\nexit 1\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert supervisors.choose("auto", Children()).name == "process"
    with pytest.raises(Refused, match=r"lingering is off and can't be switched on \(Access denied\)"):
        supervisors.choose("systemd", Children())


def test_a_record_is_json_that_people_can_read(tmp_path: Path) -> None:
    Folder(tmp_path).note(Installed("a", "p", "systemd", "a.service"))
    assert json.loads((tmp_path / "installed.json").read_text())["installed"]["unit"] == "a.service"
