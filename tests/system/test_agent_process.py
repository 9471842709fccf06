"""One agent as a process: how it comes, stays and goes, and what it says when it can't."""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fabric.commands import AskOffer, Cancel, Cancelled, Confirm, Describe, Described, Offer, Reserve
from fabric.records import Spec
from fabric.resources import Resources
from fabric.runtime.frames import frame_of
from fabric.runtime.journal import LOG
from fabric.runtime.process import EXIT_LIFELINE
from fabric.runtime.settings import EXIT_BUG, EXIT_FAILED, EXIT_OK, AgentConfig
from tests.conftest import zookeeper_server
from tests.system.agents import CLAIM, QUICK, Talker, agent_processes, members, registered, reserve, talk
from tests.waiting import wait_until

pytestmark = pytest.mark.system
SMALL = Resources(1, 1024, 1024)
ASK = AskOffer("d-abcdef0123", SMALL, 100, 1)


def test_an_agent_comes_and_sigterm_makes_it_leave_cleanly(tmp_path: Path, chroot: str) -> None:
    with agent_processes(tmp_path) as farm:
        one, two = farm.start(farm.config(chroot, "n1")), farm.start(farm.config(chroot, "n2"))
        found = registered(chroot, "n1", "n2")
        assert found["n1"].pid == one.pid
        assert found["n1"].driver == "process"
        leader, other = (one, two) if "leads rack" in one.log() else (two, one)
        leader.said("leads rack r1 (compute)")
        began = time.monotonic()
        assert leader.terminate() == EXIT_OK
        assert time.monotonic() - began < 2.5
        other.said("leads rack r1 (compute)", timeout_s=QUICK.session_timeout_s * 0.9)  # told, not timed out
        assert len(members(chroot)) == 1
        assert other.terminate() == EXIT_OK
        assert members(chroot) == {}
        assert "Traceback" not in one.log() + two.log()


def test_many_agents_in_one_process(tmp_path: Path, chroot: str) -> None:
    with agent_processes(tmp_path) as farm:
        nodes = [f"n{number}" for number in range(8)]
        process = farm.start(*(farm.config(chroot, node, driver="null") for node in nodes))
        found = registered(chroot, *nodes)
        assert {member.pid for member in found.values()} == {process.pid}

        async def ask_all(talker: Talker) -> None:
            for member in found.values():
                offer = await talker.ask(member.address, ASK)
                assert isinstance(offer, Offer)
                assert offer.count == 16

        talk(ask_all)
        assert process.terminate() == EXIT_OK
        assert members(chroot) == {}


def test_of_many_agents_in_one_process_one_may_fail(tmp_path: Path, chroot: str) -> None:
    with agent_processes(tmp_path) as farm:
        good, bad = farm.config(chroot, "n1"), farm.config(chroot, "n2", state_dir=tmp_path / "file")
        (tmp_path / "file").write_text("in the way")
        process = farm.start(good, bad)
        registered(chroot, "n1")
        assert str(tmp_path / "file") in process.said("ERROR")
        assert process.terminate() == EXIT_FAILED
        assert members(chroot) == {}


def test_a_killed_agent_that_starts_again_takes_its_place_at_once(tmp_path: Path, chroot: str) -> None:
    with agent_processes(tmp_path) as farm:
        settings = replace(QUICK, session_timeout_s=10.0)  # much longer than an agent takes to start
        config = farm.config(chroot, "n1", settings=settings)
        first = farm.start(config)
        before = registered(chroot, "n1")["n1"]
        first.kill()
        began = time.monotonic()
        second = farm.start(config)
        second.said("registered at", timeout_s=15)
        took = time.monotonic() - began
        after = members(chroot)["n1"]
        assert after.guid != before.guid
        assert after.pid == second.pid
        assert took < settings.session_timeout_s, "it knew its own earlier guid: no wait for the end of its session"


def test_a_second_agent_with_the_same_node_id_is_refused_with_the_reason(tmp_path: Path, chroot: str) -> None:
    with agent_processes(tmp_path) as farm:
        first = farm.start(farm.config(chroot, "n1"))
        registered(chroot, "n1")
        second = farm.start(farm.config(chroot, "n1", state_dir=tmp_path / "elsewhere"))
        second.ends(EXIT_FAILED)
        line = second.said("node id 'n1' in rack 'r1' is taken")
        assert f"pid {first.pid}" in line
        assert first.process.poll() is None
        assert members(chroot)["n1"].pid == first.pid


def test_a_second_agent_in_the_same_state_directory_is_refused(tmp_path: Path, chroot: str) -> None:
    with agent_processes(tmp_path) as farm:
        farm.start(farm.config(chroot, "n1"))
        registered(chroot, "n1")
        second = farm.start(farm.config(chroot, "n2", state_dir=tmp_path / "n1"))
        second.ends(EXIT_FAILED)
        second.said("another agent has it open; stop that agent, or give this one another state directory")


def test_a_port_in_use_is_one_clear_line(tmp_path: Path, chroot: str) -> None:
    with agent_processes(tmp_path) as farm, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        agents = [
            farm.start(farm.config(chroot, "n1", listen=listen)),
            farm.start(farm.config(chroot, "s1", layer="storage", listen=listen)),
            farm.start(farm.config(chroot, "s2", layer="storage", data_listen=listen)),
        ]
        for agent in agents:
            agent.ends(EXIT_FAILED)
            assert "in use" in agent.said("ERROR")
            assert "Traceback" not in agent.log()


def test_without_zookeeper_it_says_that_it_waits_and_gives_up_in_time(tmp_path: Path) -> None:
    with socket.socket() as nobody, agent_processes(tmp_path) as farm:
        nobody.bind(("127.0.0.1", 0))
        hosts = f"127.0.0.1:{nobody.getsockname()[1]}"
        patient = farm.start(farm.config(hosts, "n2", zookeeper_wait_s=60.0))
        short = farm.start(farm.config(hosts, "n1", zookeeper_wait_s=2.5))
        short.ends(EXIT_FAILED)
        assert hosts in short.said("waiting for ZooKeeper")
        assert hosts in short.said("ERROR")
        patient.said("waiting for ZooKeeper")
        assert patient.terminate() == EXIT_OK


def test_a_node_that_was_here_before_waits_for_zookeeper_however_long(tmp_path: Path) -> None:
    """It may have instances, and is started in the middle of an outage: nobody has to start it again."""
    data = tmp_path / "zk"
    with agent_processes(tmp_path) as farm, zookeeper_server(data) as server:
        hosts = server.hosts
        config = farm.config(hosts, "n1", zookeeper_wait_s=0.5)
        before = farm.start(config)
        registered(hosts, "n1")
        before.kill()
        server.kill()
        agent = farm.start(config)
        agent.said("(2 s)")  # since when it waits: four times as long as at its first start
        server.start()
        registered(hosts, "n1", timeout_s=30)
        assert agent.terminate() == EXIT_OK


def test_zookeeper_goes_away_and_comes_back(tmp_path: Path) -> None:
    data = tmp_path / "zk"
    with agent_processes(tmp_path) as farm, zookeeper_server(data) as server:
        hosts = server.hosts
        agent = farm.start(farm.config(hosts, "n1"))
        address = registered(hosts, "n1")["n1"].address
        agent.said("leads rack")
        server.kill()

        async def still_answers(talker: Talker) -> None:
            assert isinstance(await talker.ask(address, ASK), Offer)

        talk(still_answers)
        server.start()
        registered(hosts, "n1", timeout_s=30)
        wait_until(lambda: agent.log().count("leads rack r1 (compute), epoch") >= 1, what="a leader")
        assert agent.terminate() == EXIT_OK


def test_it_leaves_in_time_though_zookeeper_is_gone(tmp_path: Path) -> None:
    with agent_processes(tmp_path) as farm, zookeeper_server(tmp_path / "zk") as server:
        agent = farm.start(farm.config(server.hosts, "n1"))
        registered(server.hosts, "n1")
        server.kill()
        began = time.monotonic()
        agent.process.send_signal(signal.SIGTERM)
        agent.ends(EXIT_OK, timeout_s=12)
        assert time.monotonic() - began < 10


def test_strangers_on_the_port_change_nothing(tmp_path: Path, chroot: str) -> None:
    rng = random.Random(5)
    with agent_processes(tmp_path) as farm:
        key = bytes(range(32))
        agent = farm.start(farm.config(chroot, "n1", cluster_key=key))
        address = registered(chroot, "n1")["n1"].address
        host, port = address.removeprefix("tcp://").partition("/")[0].split(":")
        for size in (1, 10, 64, 500, 70_000):
            with socket.create_connection((host, int(port)), timeout=5) as plain:
                plain.sendall(rng.randbytes(size))

        async def without_the_key(talker: Talker) -> None:
            with pytest.raises(TimeoutError):
                await talker.ask(address, ASK, timeout_s=0.5)

        async def with_the_key(talker: Talker) -> None:
            assert isinstance(await talker.ask(address, ASK), Offer)

        talk(without_the_key)
        talk(with_the_key, key)
        assert agent.terminate() == EXIT_OK
        assert "'seal'" in agent.said("counters")  # and what else of the random bytes looked like frames


def test_the_lifeline_ends_the_process_at_once(tmp_path: Path, chroot: str) -> None:
    with agent_processes(tmp_path) as farm:
        agent = farm.start(farm.config(chroot, "n1"))
        registered(chroot, "n1")
        farm.cut_lifeline()
        assert agent.wait(2) == EXIT_LIFELINE


def test_two_signals_end_it_even_if_it_cannot_leave(tmp_path: Path, chroot: str) -> None:
    with agent_processes(tmp_path) as farm:
        agent = farm.start(farm.config(chroot, "n1"))
        registered(chroot, "n1")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            agent.process.send_signal(number)
        agent.wait(5)


def test_a_damaged_journal_is_refused_and_left_as_it_is(tmp_path: Path, chroot: str) -> None:
    with agent_processes(tmp_path) as farm:
        config = farm.config(chroot, "n1")
        for _ in range(2):
            agent = farm.start(config)
            registered(chroot, "n1")
            agent.terminate()
        path = config.state_dir / "journal" / LOG
        damaged = bytearray(path.read_bytes())
        damaged[25] ^= 1
        path.write_bytes(damaged)
        agent = farm.start(config)
        agent.ends(EXIT_FAILED)
        assert f"{path}: damaged at byte 0" in agent.said("ERROR")
        assert path.read_bytes() == damaged
        assert "Traceback" not in agent.log()


def test_a_torn_journal_is_cut_and_told(tmp_path: Path, chroot: str) -> None:
    with agent_processes(tmp_path) as farm:
        config = farm.config(chroot, "n1")
        agent = farm.start(config)
        registered(chroot, "n1")
        agent.terminate()
        path = config.state_dir / "journal" / LOG
        torn = frame_of(2, [("k", b"v")], [])[:-1]
        with path.open("ab") as file:
            file.write(torn)
        agent = farm.start(config)
        registered(chroot, "n1")
        agent.said(f"cut off {len(torn)} bytes of a write that was not finished")


def test_a_journal_that_cannot_be_written_ends_the_agent_with_the_reason(tmp_path: Path, chroot: str) -> None:
    """The kernel refuses to let any file of the agent grow, as on a full disk: nothing is acknowledged any more."""
    with agent_processes(tmp_path) as farm:
        config = farm.config(chroot, "n1", driver="null")
        write_journal(config, "filler", bytes(200_000))  # larger than the agent's log, which must be able to grow
        agent = farm.start(config)
        address = registered(chroot, "n1")["n1"].address

        async def confirm(talker: Talker) -> None:
            wanted = Reserve(ASK.deployment, CLAIM, 1, 1, SMALL, "0-3", 10_000)
            await reserve(talker, address, wanted)
            assert isinstance(await talker.ask(address, Cancel(ASK.deployment, CLAIM, 1)), Cancelled)
            await reserve(talker, address, wanted)
            size = (tmp_path / "n1" / "journal" / LOG).stat().st_size
            resource.prlimit(agent.pid, resource.RLIMIT_FSIZE, (size, size))
            with pytest.raises(TimeoutError):
                await talker.ask(address, confirm_of("0-3", talker.bus.address), timeout_s=2)

        talk(confirm)
        agent.ends(EXIT_FAILED)
        assert "journal/log: a write failed" in agent.log()
        assert members(chroot) == {}, "it closed its session, so that nobody waits for it"


def write_journal(config: AgentConfig, key: str, value: bytes) -> None:
    directory = config.state_dir / "journal"
    directory.mkdir(parents=True)
    (directory / LOG).write_bytes(frame_of(1, [(key, value)], []))


def confirm_of(ordinals: str, report_to: str, digest: str = "b3:" + 64 * "0") -> Confirm:
    return Confirm(ASK.deployment, CLAIM, 1, Spec("web", digest, "Small", SMALL, {}, "always"), ordinals, report_to)


def test_a_bug_in_a_role_ends_the_agent_with_a_traceback(tmp_path: Path, chroot: str) -> None:
    """A journal whose records make no sense to the role stands for any exception in it."""
    with agent_processes(tmp_path) as farm:
        config = farm.config(chroot, "n1")
        write_journal(config, "w/d-abcdef0123", b"no json")
        agent = farm.start(config)
        agent.ends(EXIT_BUG)
        assert "Traceback" in agent.log()
        agent.said("ended by a bug (DecodeError")


def test_an_idle_agent_takes_less_than_60_mib(tmp_path: Path, chroot: str) -> None:
    with agent_processes(tmp_path) as farm:
        agent = farm.start(farm.config(chroot, "n1"))
        address = registered(chroot, "n1")["n1"].address

        async def some_work(talker: Talker) -> None:
            for _ in range(200):
                described = await talker.ask(address, Describe("", 10))
                assert isinstance(described, Described)

        talk(some_work)
        rollup = Path(f"/proc/{agent.pid}/smaps_rollup").read_text().split("\n")
        kib = {line.split(":")[0]: int(line.split()[1]) for line in rollup[1:] if line}
        assert kib["Private_Clean"] + kib["Private_Dirty"] < 60 * 1024
        assert len(os.listdir(f"/proc/{agent.pid}/task")) < 12
