"""Installing and uninstalling for real: scripts, executables, archives, Python classes, and what goes wrong."""

from __future__ import annotations

import asyncio
import io
import sys
import tarfile
from pathlib import Path

import pytest

from deploy.configuration import Configuration, ProgramRole
from deploy.messages import Charge
from deploy.stub.code import is_named
from deploy.stub.limits import StubSettings
from deploy.stub.processes import Strays
from tests.unit.deploy.stub.place import place
from tests.unit.runtime.until import until

SLEEPER = "exec sleep 1000"


def read(path: str) -> bytes:
    return Path(path).read_bytes()


def archive(*members: tuple[str, str, int], mode: str = "w:gz") -> bytes:
    """A tar archive of (name, text, mode)."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as tar:  # type: ignore[call-overload]
        for name, text, bits in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(text), bits
            tar.addfile(info, io.BytesIO(text.encode()))
    return data.getvalue()


def test_a_script_gets_parameters_runs_in_its_folder_and_returns_the_start_command(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            script = here.repository.script(
                "install.sh",
                'echo "$PWD|$TMP_DIR|$*|$MANAGENT_ID|$MANAGENT_DIR|$MANAGENT_PARENT|$MANAGENT_STUB" > said\n'
                "printf '#!/bin/sh\\necho started \"$@\" with $COLOR\\nexec sleep 1000\\n' > agent\n"
                "chmod +x agent\necho hello\necho 'MANAGENT_START=./agent --fast \"two words\"'\necho",
            )
            install = Configuration(env={"TMP_DIR": "/tmp"}, args={"MGMT_PORT": "7078", "B": "x y"})
            here.repository.put(script, install=install, env={"COLOR": "red"}, args={"P": "1"})
            answer = await here.command("deploy")
            assert (answer.outcome, answer.reason) == ("done", "")
            work = here.work()
            said = (work / "said").read_text().strip()
            assert said == f"{work}|/tmp|MGMT_PORT=7078 B=x y|/site/a|{work}|/site|s1"
            await until(lambda: "started" in here.output())
            assert here.output() == "started --fast two words P=1 with red\n"
            assert [span.step for span in answer.spans] == [2, 3, 4, 3, 5, 6]

    asyncio.run(scenario())


def test_any_interpreter_by_the_first_line_and_an_executable(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            python = here.repository.file(
                "install", f"#!{sys.executable} -IS\nprint('MANAGENT_START=/bin/sleep 1000')\n"
            )
            here.repository.put(python)
            assert (await here.command("deploy")).outcome == "done"
            true = here.repository.file("true", read("/bin/true"))
            here.repository.put(true, path="/site/b", start="sleep 1000")
            assert (await here.command("deploy", "/site/b")).outcome == "done"
            assert read(f"/proc/{here.pid('/site/b')}/comm") == b"sleep\n"

    asyncio.run(scenario())


def test_archives_are_unpacked_their_install_is_run_and_several_codes_in_order(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            one = here.repository.file(
                "one.tgz",
                archive(
                    ("install", "#!/bin/sh\necho one >> order; cat etc/x >> order\n", 0o755),
                    ("etc/x", "x\n", 0o644),
                    ("managent", f"#!/bin/sh\n{SLEEPER}\n", 0o755),
                ),
            )
            two = here.repository.script("two.sh", "echo two >> order")
            here.repository.put(one, two)
            assert (await here.command("deploy")).outcome == "done"
            assert (here.work() / "order").read_text() == "one\nx\ntwo\n"
            assert (here.work() / "etc/x").stat().st_mode & 0o777 == 0o644
            assert here.pid()

    asyncio.run(scenario())


def test_an_archive_without_a_program_install_runs_nobody_elses(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            script = here.repository.script("install", "echo run >> order")
            data = here.repository.file("data.tar", archive(("etc/install", "x", 0o755), mode="w"))
            here.repository.put(script, data, start="sleep 1000")
            assert (await here.command("deploy")).outcome == "done"
            assert (here.work() / "order").read_text() == "run\n"
            folder = here.repository.file("folder.tar", archive(("install/x", "x", 0o644), mode="w"))
            here.repository.put(folder, start="sleep 1000", path="/site/b")
            answer = await here.command("deploy", "/site/b")
            assert (answer.outcome, answer.reason) == ("done", "")

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("member", "reason"), [("../out", "expected a path inside"), ("/etc/out", "expected a relative path")]
)
def test_an_archive_that_reaches_outside_is_refused(tmp_path: Path, member: str, reason: str) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            here.repository.put(
                here.repository.file("bad.tar", archive((member, "x", 0o644), mode="w")), start="sleep 9"
            )
            answer = await here.command("deploy")
            assert answer.outcome == "failed"
            assert reason in answer.reason

    asyncio.run(scenario())


def test_links_that_a_managent_left_do_not_lead_a_later_archive_outside(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            outside = tmp_path / "outside"
            outside.mkdir()
            here.repository.put(
                here.repository.file("a.tar", archive(("etc/x", "new", 0o644), mode="w")), start="sleep 1000"
            )
            assert (await here.command("deploy")).outcome == "done"
            assert (await here.command("shutdown")).outcome == "done"
            (here.work() / "etc/x").unlink()
            (here.work() / "etc").rmdir()
            (here.work() / "etc").symlink_to(outside)
            assert (await here.command("configure-env")).outcome == "done"
            assert (await here.command("deploy")).outcome == "done"
            assert list(outside.iterdir()) == []
            assert (here.work() / "etc/x").read_text() == "new"

    asyncio.run(scenario())


def test_an_installation_that_hangs_is_killed_by_its_limit_and_its_last_lines_are_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(tmp_path, settings=StubSettings(install_s=0.3)) as here:
            script = here.repository.script(
                "hang.sh",
                "trap '' TERM\necho working >&2\nsleep 1000 &\necho $! > child\necho stuck\nwait\nwait\nsleep 999",
            )
            here.repository.put(script)
            answer = await here.command("deploy")
            assert answer.outcome == "failed"
            assert answer.reason == "installation code hang.sh: did not end within 0.3 s"
            assert set(answer.tail) == {"working", "stuck"}
            assert (answer.env, answer.life) == ("configured", "non-existent")
            child = int((here.work() / "child").read_text())
            await until(lambda: gone(child), what="the child is killed with its group")

    asyncio.run(scenario())


def test_an_installation_that_fails_is_told_with_its_last_lines_and_may_be_tried_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            here.repository.put(
                here.repository.script("i.sh", "touch half\nseq 1 100\necho no room >&2\nexit 3"), start="sleep 1000"
            )
            answer = await here.command("deploy")
            assert answer.reason == "installation code i.sh: exit status 3"
            assert len(answer.tail) == 20
            assert {"no room", "100"} <= set(answer.tail)
            here.repository.put(here.repository.script("i.sh", "test ! -e half"), start="sleep 1000")
            assert (await here.command("deploy")).outcome == "done"

    asyncio.run(scenario())


def test_a_flood_of_output_is_bounded(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            here.repository.put(
                here.repository.script("i.sh", "head -c 5000000 /dev/zero\nyes | head -c 1000000"), start="sleep 1000"
            )
            assert (await here.command("deploy")).outcome == "done"
            assert here.host is not None
            assert here.host._homes.install_log("/site/a").stat().st_size < 64 * 1024

    asyncio.run(scenario())


def test_uninstalling_gives_the_installation_a_chance_and_leaves_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            outside = tmp_path / "outside"
            script = here.repository.script(
                "i.sh",
                f'if [ "$1" = uninstall ]; then\n'
                f'echo "$MANAGENT_UNINSTALL $2" > {tmp_path}/undone; rm {outside}; exit\n'
                "fi\n"
                f"mkdir -p deep/er; touch {outside} deep/er/file; chmod 0 deep/er/file; chmod 500 deep/er\n"
                "setsid sleep 1000 > /dev/null 2>&1 &\necho $! > stray\n"
                "echo MANAGENT_UNINSTALL=yes",
            )
            here.repository.put(script, install=Configuration(args={"A": "1"}), start="sleep 1000")
            assert (await here.command("deploy")).outcome == "done"
            assert outside.exists()
            stray = int((here.work() / "stray").read_text())
            assert (await here.command("shutdown")).outcome == "done"
            answer = await here.command("uninstall")
            assert (answer.outcome, answer.reason, answer.env) == ("done", "", "non-existent")
            assert not outside.exists()
            assert (tmp_path / "undone").read_text() == "1 A=1\n"
            assert list((here.folder / "managents").iterdir()) == []
            assert list((here.folder / "logs").iterdir()) == []
            await until(lambda: gone(stray), what="what got away from its session is killed")

    asyncio.run(scenario())


def test_an_uninstallation_that_fails_is_told_and_leaves_nothing_all_the_same(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            here.repository.put(
                here.repository.script(
                    "i.sh", '[ "$1" = uninstall ] && echo oh && exit 4\necho MANAGENT_UNINSTALL=yes'
                ),
                start="sleep 1000",
            )
            assert (await here.command("deploy")).outcome == "done"
            await here.command("shutdown")
            answer = await here.command("uninstall")
            assert (answer.outcome, answer.reason, answer.tail) == ("done", "i.sh uninstall: exit status 4", ("oh",))
            assert list((here.folder / "managents").iterdir()) == []

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("name", "told", "named"),
    [
        ("a.py", "python3 -u a.py --fast", True),
        ("a.sh", "./a.sh b.sh", True),
        ("b.sh", "./a.sh b.sh", False),
        ("SimpleAgent.class", "java SimpleAgent", True),
        ("a.jar", "java -jar a.jar", True),
        ("a.sh", "/bin/sh a.sh", True),
        ("a.sh", "bin/run a.sh", False),
        ("a.sh", "", False),
    ],
)
def test_which_code_the_told_start_command_names(name: str, told: str, named: bool) -> None:
    assert is_named(name, told) is named


def test_code_that_the_told_start_command_names_is_the_program_whatever_its_format(tmp_path: Path) -> None:
    """Else a plain file of Python would be taken for a class of the boot stub's, and a jar for nothing at all."""

    async def scenario() -> None:
        async with place(tmp_path) as here:
            said = here.repository.file("agent.py", "import time\nprint('up', flush=True)\ntime.sleep(1000)\n")
            here.repository.put(said, here.repository.file("data.jar", b"PK\3\4"))
            told = Charge("http://repository/", start=f"{sys.executable} agent.py")
            answer = await here.command("deploy", charge=told)
            assert (answer.outcome, answer.final) == ("failed", True)
            assert "code data.jar: expected a script" in answer.reason
            here.repository.put(said)
            assert (await here.command("deploy", charge=told)).outcome == "done"
            await until(lambda: here.output() == "up\n")

    asyncio.run(scenario())


def test_what_an_earlier_try_left_running_is_ended_before_the_next(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            child = tmp_path / "child"
            stays = f"setsid sh -c 'echo $$ > {child}; exec sleep 1000' &"
            waits = f"while [ ! -s {child} ]; do sleep 0.01; done"
            here.repository.put(here.repository.script("i.sh", f"{stays}\n{waits}\nexit 1"))
            assert (await here.command("deploy")).outcome == "failed"
            stray = int(child.read_text())
            assert not gone(stray)
            here.repository.put(here.repository.script("managent", "exec sleep 1000"))
            assert (await here.command("deploy")).outcome == "done"
            assert gone(stray)

    asyncio.run(scenario())


def test_a_process_that_can_not_be_ended_is_told_and_its_folder_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            here.repository.put(here.repository.script("managent", "exec sleep 1000"))
            await here.command("deploy")
            await here.command("shutdown")
            with monkeypatch.context() as stuck:
                stuck.setattr("deploy.stub.processes.kill_others", lambda wanted, timeout_s: False)
                answer = await here.command("uninstall")
            assert answer.outcome == "failed"
            assert f"a process of {here.work()} did not end within 5 s after KILL" in answer.reason
            assert here.work().exists()
            assert (await here.command("uninstall")).outcome == "done"

    asyncio.run(scenario())


def test_a_look_over_all_processes_that_fails_is_told_to_all_who_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(wanted: object, timeout_s: float) -> bool:
        raise PermissionError("no /proc here")

    async def scenario() -> None:
        strays = Strays()
        monkeypatch.setattr("deploy.stub.processes.kill_others", fails)
        told = await asyncio.wait_for(
            asyncio.gather(*(strays.kill(bool) for _ in range(3)), return_exceptions=True), 10
        )
        assert list(map(str, told)) == 3 * ["no /proc here"]
        monkeypatch.undo()
        assert await asyncio.wait_for(strays.kill(lambda directory: False), 10), "the next look is another one"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("name", "text", "options", "reason"),
    [
        ("x", "what is this", {}, "expected a script that begins with #!"),
        ("x", "", {}, "found an empty file"),
        ("x.sh", "#!/no/such/interpreter\n", {}, "its interpreter '/no/such/interpreter' does not exist here"),
        ("x.sh", "#!/bin/sh\ntrue\n", {}, "expected a way to start the managent, found none"),
        ("x.sh", "#!/bin/sh\ntrue\n", {"start": "no-such-program"}, "cannot execute no-such-program"),
        ("x.sh", "#!/bin/sh\ntrue\n", {"start": "'open"}, "expected a command line"),
        ("x.py", "class Other: ...\n", {}, "expected a class Managent, found Other"),
        ("x.py", "def broken(:\n", {}, "SyntaxError"),
        ("x.py", "class Managent:\n  def install(self, context): raise OSError('no disk')\n", {}, "OSError: no disk"),
        (
            "x.py",
            "class Managent:\n  def install(self, context): return 3\n",
            {},
            "expected a start command or None, found int",
        ),
    ],
)
def test_what_no_boot_stub_can_do_anything_with(
    tmp_path: Path, name: str, text: str, options: dict[str, str], reason: str
) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            here.repository.put(here.repository.file(name, text), **options)
            answer = await here.command("deploy")
            assert answer.outcome == "failed"
            assert reason in answer.reason

    asyncio.run(scenario())


def test_contradicting_start_commands_of_two_installations_and_two_programs(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            one, two = (here.repository.script(f"{n}.sh", f"echo MANAGENT_START=./{n}") for n in ("one", "two"))
            here.repository.put(one, two)
            answer = await here.command("deploy")
            assert "conflicting start commands: one.sh returned './one'; two.sh returned './two'" in answer.reason
            both = [here.repository.script(f"managent.{n}", SLEEPER) for n in ("a", "b")]
            here.repository.put(*both, path="/site/b")
            answer = await here.command("deploy", "/site/b")
            assert "expected one program to start, found managent.a, managent.b" in answer.reason
            twice = here.repository.script("same.sh", "true")
            here.repository.put(twice, twice, path="/site/c")
            assert "'same.sh' more than once" in (await here.command("deploy", "/site/c")).reason

    asyncio.run(scenario())


def test_a_python_class_installs_returns_a_start_command_and_uninstalls(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            code = here.repository.file(
                "agent.py",
                "class Setup:\n"
                "  def __init__(self, context): self.context = context\n"
                "  def install(self, context):\n"
                "    (context.directory / 'made').write_text(context.env['A'] + context.args['B'])\n"
                "    return 'sleep 1000'\n"
                "  def uninstall(self, context):\n"
                f"    with open({str(tmp_path / 'undone')!r}, 'w') as file: file.write(context.id)\n",
            )
            install = Configuration({"A": "1"}, {"B": "2"}, program=ProgramRole(class_name="Setup"))
            here.repository.put(code, install=install)
            assert (await here.command("deploy")).outcome == "done"
            assert (here.work() / "made").read_text() == "12"
            assert here.pid()
            await here.command("shutdown")
            assert (await here.command("uninstall")).outcome == "done"
            assert (tmp_path / "undone").read_text() == "/site/a"

    asyncio.run(scenario())


def test_at_most_so_many_installations_run_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(tmp_path, settings=StubSettings(installs=2)) as here:
            (tmp_path / "in").mkdir()
            script = here.repository.script(
                "i.sh",
                f"cd {tmp_path}/in; touch $$; n=0\n"
                "while [ $(ls | wc -l) -lt 2 ] && [ $n -lt 20 ]; do sleep 0.02; n=$((n + 1)); done\n"
                "ls | wc -l; rm $$",
            )
            here.repository.put(script, start="sleep 1000")
            answers = await asyncio.gather(*(here.command("deploy", f"/site/n{n}") for n in range(6)))
            assert {one.outcome for one in answers} == {"done"}
            counts = [int(log.read_text()) for log in (here.folder / "logs").glob("*.install")]
            assert len(counts) == 6
            assert max(counts) == 2

    asyncio.run(scenario())


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True
