"""Python classes in the boot stub: made, told, and never able to take it down. And initiators, which live there too."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from deploy.configuration import Children, InitiatorRole
from deploy.hosting import InitiatorCharge, InitiatorHome
from deploy.messages import StubBeat, TreeCall
from deploy.records import StubRecord, StubRef
from deploy.stub import pool
from deploy.stub.limits import StubSettings
from deploy.stub.pool import Pool, PoolError
from tests.unit.deploy.stub.place import SETTINGS, Place, place
from tests.unit.deploy.stub.test_programs import health
from tests.unit.runtime.until import until

AGENT = """
import threading
class SimpleAgent:
    def __init__(self, context):
        self.context = context
        self.file = context.directory / "said"
    def say(self, what):
        with self.file.open("a") as file:
            file.write(what + " " + self.context.env.get("A", "-") + self.context.args.get("B", "-") + "\\n")
    def activate(self): self.say("activate")
    def deactivate(self): self.say("deactivate")
    def shutdown(self): self.say("shutdown")
"""


def said(here: Place) -> list[str]:
    return (here.work() / "said").read_text().splitlines()


def test_a_class_is_made_and_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            code = here.repository.file("SimpleAgent.py", AGENT)
            here.repository.put(code, class_name="SimpleAgent", env={"A": "1"}, args={"B": "2"})
            for verb in ("deploy", "deactivate", "activate", "shutdown", "start"):
                answer = await here.command(verb)  # type: ignore[arg-type]
                assert (answer.outcome, answer.reason) == ("done", "")
            assert said(here) == [
                f"{what} 12" for what in ("activate", "deactivate", "activate", "shutdown", "activate")
            ]

    asyncio.run(scenario())


def test_after_a_restart_a_class_is_made_anew_and_activated_if_it_was_active(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            here.repository.put(here.repository.file("SimpleAgent.py", AGENT), class_name="SimpleAgent")
            await here.command("deploy")
            assert await here.stop() == 0
            await here.start()
            await until(lambda: len(said(here)) == 3)
            assert said(here) == ["activate --", "shutdown --", "activate --"]
            await here.command("deactivate")
            await here.crash()
            await here.start()
            assert (await here.command("activate")).outcome == "done"
            assert said(here)[3:] == ["deactivate --", "activate --"]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("def activate(self): raise RuntimeError('no')", "Managent.activate: RuntimeError: no"),
        ("def activate(self): raise SystemExit(3)", "Managent.activate: RuntimeError: raised SystemExit(3)"),
        ("def __init__(self, context): 1 / 0\n  def activate(self): ...", "ZeroDivisionError"),
        ("def activate(self):\n    import threading; threading.Event().wait()", "did not return within 0.3 s"),
        ("x = 1", "expected a way to start the managent, found none"),
    ],
)
def test_what_a_class_does_wrong_fails_the_command_and_nothing_else(tmp_path: Path, body: str, reason: str) -> None:
    async def scenario() -> None:
        async with place(tmp_path, settings=StubSettings(class_s=0.3)) as here:
            here.repository.put(here.repository.file("a.py", f"class Managent:\n  {body}\n"))
            answer = await here.command("deploy")
            assert (answer.outcome, answer.life) == ("failed", "configured")
            assert reason in answer.reason
            here.repository.put(
                here.repository.file("b.py", "class Managent:\n  def activate(self): ...\n"), path="/site/b"
            )
            assert (await here.command("deploy", "/site/b")).outcome == "done"

    asyncio.run(scenario())


def test_a_module_that_is_too_large_is_not_even_read(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            here.repository.put(
                here.repository.file("a.py", "class Managent:\n  def activate(self): ...\n" + "#" * 2**20)
            )
            answer = await here.command("deploy")
            assert (answer.outcome, answer.env) == ("failed", "configured")
            assert "code a.py: expected at most 1,048,576 bytes of Python, found more" in answer.reason

    asyncio.run(scenario())


def test_a_class_that_does_not_come_to_rest_is_silent_and_stays_active(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            text = "class Managent:\n  def activate(self): ...\n  def deactivate(self): raise ValueError('busy')\n"
            here.repository.put(here.repository.file("a.py", text))
            await here.command("deploy")
            answer = await here.command("deactivate")
            assert (answer.outcome, answer.life, answer.reason) == (
                "failed",
                "active",
                "Managent.deactivate: ValueError: busy",
            )
            assert health(here) == ("active", "silent")

    asyncio.run(scenario())


def test_a_class_can_say_that_it_can_not_go_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            text = (
                "import threading\nclass Managent:\n  def __init__(self, context): self.context = context\n"
                "  def activate(self): threading.Timer(0.01, self.context.fail, ['no more disk']).start()\n"
            )
            here.repository.put(here.repository.file("a.py", text))
            await here.command("deploy")
            await until(lambda: health(here) == ("configured", "crashed"))
            beat = await until(
                lambda: next((one for b in here.beats for one in b.managents if one.health != "ok"), None)
            )
            assert beat.reason == "its class gave up: no more disk"

    asyncio.run(scenario())


def test_a_module_is_executed_once_for_many_managents(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            count = tmp_path / "count"
            text = (
                f"with open({str(count)!r}, 'a') as file: file.write('x')\nclass Managent:\n  def activate(self): ...\n"
            )
            here.repository.put(here.repository.file("a.py", text))
            answers = await asyncio.gather(*(here.command("deploy", f"/site/n{n}") for n in range(20)))
            assert {one.outcome for one in answers} == {"done"}
            assert count.read_text() == "x"

    asyncio.run(scenario())


# --- the pool ------------------------------------------------------------------------------------------------------


def test_quick_calls_need_one_thread_and_blocked_ones_get_more() -> None:
    async def scenario() -> None:
        threads = Pool(threads=3)
        names = await asyncio.gather(*(threads.call(lambda: threading.get_ident(), 5) for _ in range(200)))
        assert len(set(names)) == 1
        go = threading.Event()
        blocked = [asyncio.ensure_future(threads.call(go.wait, 5)) for _ in range(2)]
        assert await threads.call(lambda: 7, 5) == 7, "two are blocked, the third is not"
        go.set()
        await asyncio.gather(*blocked)
        threads.close()

    asyncio.run(scenario())


def test_threads_that_never_come_back_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(pool, "MAX_STUCK", 2)
        threads, go = Pool(threads=1), threading.Event()
        for _ in range(2):
            with pytest.raises(PoolError, match="did not return"):
                await threads.call(go.wait, 0.05)
        with pytest.raises(PoolError, match="never returned"):
            await threads.call(lambda: 1, 5)
        go.set()
        await until(lambda: threads._stuck == 0)
        assert await threads.call(lambda: 1, 5) == 1
        threads.close()

    asyncio.run(scenario())


# --- initiators and the directory ----------------------------------------------------------------------------------


class Hosted:
    def __init__(self, home: InitiatorHome, charge: InitiatorCharge) -> None:
        self.home, self.charge, self.told = home, charge, ["made"]

    def take(self, sender: str, message: Any) -> None:
        self.told.append(type(message).__name__)
        if isinstance(message, TreeCall) and message.pattern == "/boom":
            self.told.append("close")
            self.home.failed(self.charge.path, "a bug")
            return
        self.home.send(sender, StubBeat("/site", self.charge_ref(), "0" * 16, False, ()))

    def charge_ref(self) -> Any:
        return StubRef("s1", self.home.address)

    def activate(self) -> None:
        self.told.append("activate")

    def deactivate(self) -> None:
        self.told.append("deactivate")

    def charged(self, charge: InitiatorCharge) -> None:
        self.told.append(f"charged {charge.epoch}")

    def close(self) -> None:
        self.told.append("close")


def test_an_initiator_is_hosted_and_gets_the_messages_for_its_path(tmp_path: Path) -> None:
    async def scenario() -> None:
        hosted: list[Hosted] = []

        def new(home: InitiatorHome, charge: InitiatorCharge) -> Hosted:
            hosted.append(Hosted(home, charge))
            return hosted[-1]

        async with place(tmp_path, new_initiator=new) as here:
            here.repository.put(initiator=InitiatorRole((Children("count", 2),)))
            answer = await here.command("deploy", "/site/x")
            assert (answer.outcome, answer.initiator) == ("done", True)
            here.bus.send(here.ref.address, TreeCall("t", "/site/x", here.parent, "/**", "status", 1000))
            await until(lambda: "TreeCall" in hosted[0].told)
            here.bus.send(here.ref.address, TreeCall("t", "/site/nobody", here.parent, "/**", "status", 1000))
            assert here.host is not None
            initiators = here.host._initiators
            assert initiators is not None
            await until(lambda: initiators.unknown["TreeCall"] == 1)
            await here.command("deactivate", "/site/x")
            await here.command("shutdown", "/site/x")
            assert hosted[0].told == ["made", "activate", "TreeCall", "deactivate", "close"]
            await here.command("start", "/site/x")
            await here.crash()
            await here.start()
            await until(lambda: len(hosted) == 3 and hosted[2].told == ["made", "activate"])
            assert hosted[2].charge.path == "/site/x"
            here.bus.send(here.ref.address, TreeCall("t", "/site/x", here.parent, "/boom", "status", 1000))
            await until(lambda: health(here, "/site/x") == ("configured", "crashed"))
            assert hosted[2].told[-1] == "close"
            assert (await here.command("start", "/site/x")).outcome == "done"

    asyncio.run(scenario())


def test_a_boot_stub_without_initiators_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with place(tmp_path) as here:
            here.repository.put(initiator=InitiatorRole((Children("count", 2),)))
            answer = await here.command("deploy")
            assert (answer.outcome, answer.life) == ("failed", "configured")
            assert "this boot stub hosts none" in answer.reason

    asyncio.run(scenario())


def test_it_registers_in_the_directory_until_that_works_and_serves_meanwhile(tmp_path: Path) -> None:
    async def scenario() -> None:
        tried: list[StubRecord] = []
        ready = asyncio.Event()

        async def register(record: StubRecord) -> None:
            tried.append(record)
            if not ready.is_set():
                raise OSError("no directory yet")

        async with place(tmp_path, register=register, settings=SETTINGS) as here:
            here.repository.put(start="sleep 1000")
            assert (await here.command("deploy")).outcome == "done"
            await until(lambda: len(tried) >= 3)
            ready.set()
            known = len(tried)
            await until(lambda: len(tried) == known + 1)
            record = tried[-1]
            assert (record.name, record.address, record.domain, record.by) == ("s1", here.ref.address, "/site", "boot")

    asyncio.run(scenario())
