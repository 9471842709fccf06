"""All hosts, over stand-ins for ssh: retries, bounds, and what is made of hosts that say strange things."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path

import pytest

from deploy.ssh.bundle import Bundle
from deploy.ssh.command import SshSettings
from deploy.ssh.fleet import Fleet, FleetSettings, NotForgotten, Outcome
from deploy.ssh.host.orders import MARK, MAX_TAIL_CHARS, Order, Said
from deploy.ssh.hosts import Host, parse_hosts
from deploy.ssh.talk import MAX_LINE_BYTES, MAX_SAID, NotReached

HOST = Host("a")
UNCHANGED = asdict(Said("end", outcome="unchanged", name="a", pid=7))


def ssh(folder: Path, script: str) -> SshSettings:
    """An ssh that runs a shell script instead; $1 to the last are ssh's words."""
    program = folder / "ssh"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return SshSettings(str(program))


def saying(*lines: object) -> str:
    """A script that says these, JSON for what is no text, as a host does that is told nothing."""
    said = [line if isinstance(line, str) else MARK + json.dumps(line) for line in lines]
    return "cat <<'END'\n" + "".join(f"{line}\n" for line in said) + "END"


def visit(settings: SshSettings, retries: int = 0, limit_s: float = 20.0, bundle: Bundle | None = None) -> Outcome:
    fleet = Fleet([HOST], Order("install"), b"", bundle, FleetSettings(1, limit_s, retries), settings)
    (outcome,) = asyncio.run(fleet.run())
    return outcome


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.ssh.fleet.RETRY_FIRST_S", 0.01)


def test_what_a_login_prints_is_no_message(tmp_path: Path) -> None:
    outcome = visit(ssh(tmp_path, saying("Welcome", "", {"kind": "hello"}, f"prompt> {MARK}{json.dumps(UNCHANGED)}")))
    assert (outcome.result, outcome.name, outcome.pid, outcome.tries) == ("unchanged", "a", 7, 1)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (f"echo '{MARK}{{}}'", "expected a message of the installation"),
        (f"echo '{MARK}no JSON'", "expected a message of the installation"),
        (saying({"kind": "end", "outcome": "wonderful"}), "expected a message of the installation"),
        (saying({"kind": "end", "pid": "7"}), "expected a message of the installation"),
        (saying({"kind": "need"}), "expected no call for a bundle"),
        (f"head -c {MAX_LINE_BYTES * 2} /dev/zero; sleep 100", f"10000 lines of at most {MAX_LINE_BYTES} bytes"),
        ("yes", f"10000 lines of at most {MAX_LINE_BYTES} bytes"),
        ("yes >&2 & exec yes", "10000 lines"),
        (f"yes '{MARK}{json.dumps({'kind': 'begin', 'step': 'x'})}'", f"expected at most {MAX_SAID} messages"),
        ("echo no such account; exit 7", "its login ended with exit code 7"),
        ("exit 0", "its login ended with exit code 0"),
    ],
)
def test_a_host_that_says_strange_things_has_failed(tmp_path: Path, script: str, said: str) -> None:
    outcome = visit(ssh(tmp_path, script), retries=3)
    assert outcome.result == "failed"
    assert said in outcome.reason
    assert outcome.tries == 1


def test_what_steers_a_terminal_is_not_passed_on(tmp_path: Path) -> None:
    end = asdict(Said("end", outcome="failed", text="\x1b[2Jgone\nnext", tail=("\x07" * 2, "x" * 10_000)))
    outcome = visit(ssh(tmp_path, saying(end)))
    assert outcome.reason == "?[2Jgone?next"
    assert outcome.tail == ("??", "x" * MAX_TAIL_CHARS)


def test_a_connection_that_fails_is_tried_again(tmp_path: Path) -> None:
    script = f"echo x >> {tmp_path}/tries; [ $(wc -l < {tmp_path}/tries) -lt 3 ] && echo refused >&2 && exit 255"
    outcome = visit(ssh(tmp_path, f"{script}\n{saying(UNCHANGED)}"), retries=2)
    assert (outcome.result, outcome.tries) == ("unchanged", 3)


def test_it_is_given_up_when_it_goes_on_failing_or_cannot_go_better(tmp_path: Path) -> None:
    outcome = visit(ssh(tmp_path, "echo Connection refused >&2; exit 255"), retries=2)
    assert (outcome.result, outcome.tries, outcome.reason) == ("unreachable", 3, "Connection refused")
    outcome = visit(ssh(tmp_path, "echo Permission denied >&2; exit 255"), retries=2)
    assert (outcome.result, outcome.tries, outcome.reason) == ("unreachable", 1, "Permission denied")


def test_a_connection_that_breaks_off_is_begun_again(tmp_path: Path) -> None:
    once = f"[ -e {tmp_path}/again ] || {{ touch {tmp_path}/again; exit 1; }}"
    script = f"{saying({'kind': 'step', 'step': 'x'})}\n{once}"
    outcome = visit(ssh(tmp_path, f"{script}\n{saying(UNCHANGED)}"), retries=1)
    assert (outcome.result, outcome.tries) == ("unchanged", 2)
    assert [step.name for step in outcome.steps] == ["x"], "those of the last try"
    outcome = visit(ssh(tmp_path, saying({"kind": "hello"})), retries=1)
    assert (outcome.result, outcome.tries) == ("unreachable", 2)
    assert "broke off" in outcome.reason


def test_a_bundle_is_sent_when_it_is_asked_for(tmp_path: Path) -> None:
    content = bytes(range(256)) * 4096
    script = f"{saying({'kind': 'need'})}\nhead -n 1 >/dev/null\nhead -c {len(content)} > {tmp_path}/got"
    outcome = visit(
        ssh(tmp_path, f"{script}\n{saying(UNCHANGED)}".replace("head -n 1", "sed -u 1q")),
        bundle=Bundle(content, "x", False),
    )
    assert outcome.result == "unchanged"
    assert (tmp_path / "got").read_bytes() == content


def test_a_time_limit_says_how_far_it_came(tmp_path: Path) -> None:
    outcome = visit(ssh(tmp_path, f"{saying({'kind': 'begin', 'step': 'environment'})}\nexec sleep 100"), limit_s=0.5)
    assert (outcome.result, outcome.reason) == (
        "failed", "expected it to be done within 0.5 s, and it was not, at: environment",
    )  # fmt: skip


def test_a_stub_that_does_not_register_has_failed(tmp_path: Path) -> None:
    asked = []

    async def registered(name: str, pid: int) -> str:
        asked.append((name, pid))
        return "the directory does not have it"

    settings = ssh(tmp_path, saying(UNCHANGED))
    fleet = Fleet([HOST], Order("install"), b"", None, FleetSettings(), settings, registered)
    (outcome,) = asyncio.run(fleet.run())
    assert (outcome.result, outcome.reason, outcome.pid) == ("failed", "the directory does not have it", 7)
    assert asked == [("a", 7)]


def test_a_name_that_a_host_makes_up_is_not_looked_for(tmp_path: Path) -> None:
    async def registered(name: str, pid: int) -> str:
        raise AssertionError(name)

    settings = ssh(tmp_path, saying(UNCHANGED | {"name": "../../election"}))
    fleet = Fleet([HOST], Order("install"), b"", None, FleetSettings(), settings, registered)
    (outcome,) = asyncio.run(fleet.run())
    assert outcome.result == "failed"
    assert outcome.reason.startswith("expected a name of 1 to 64 letters")


def test_many_hosts_so_many_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, most, orders = 0, 0, []

    async def talk(host: Host, order: Order, *_: object) -> Said:
        nonlocal now, most
        now += 1
        most = max(most, now)
        orders.append((order.name, order.domain))
        await asyncio.sleep(0)
        now -= 1
        if host.host.endswith("7"):
            raise NotReached("asleep", False)
        return Said("end", outcome="installed")

    monkeypatch.setattr("deploy.ssh.fleet.talk", talk)
    hosts = parse_hosts("".join(f"h{number} name=n{number} domain=/d\n" for number in range(100)) + "last", "f")
    ended: list[Outcome] = []
    order = Order("install", domain="/site")
    fleet = Fleet(hosts, order, b"", None, FleetSettings(parallel=8), SshSettings(), ended=ended.append)
    outcomes = asyncio.run(fleet.run())
    assert most == 8
    assert [outcome.host for outcome in outcomes] == list(hosts), "in the file's order"
    assert sorted(orders) == sorted([(f"n{number}", "/d") for number in range(100)] + [("", "/site")])
    assert len([outcome for outcome in outcomes if outcome.result == "unreachable"]) == 10
    assert {outcome.host for outcome in ended} == set(hosts)


def test_an_interruption_leaves_a_result_for_every_host(tmp_path: Path) -> None:
    quick = f'for word; do [ "$word" = quick ] && {{ {saying(UNCHANGED)}\nexit; }}; done'
    script = f"{quick}\ntouch {tmp_path}/up; exec sleep 100"
    hosts = parse_hosts("quick\nslow\nnever", "f")

    async def run() -> tuple[Outcome, ...]:
        fleet = Fleet(hosts, Order("install"), b"", None, FleetSettings(parallel=1), ssh(tmp_path, script))
        task = asyncio.create_task(fleet.run())
        while not (tmp_path / "up").exists():
            await asyncio.sleep(0.01)
        task.cancel()
        return await task

    outcomes = asyncio.run(asyncio.wait_for(run(), 20))
    assert [outcome.result for outcome in outcomes] == ["unchanged", "interrupted", "interrupted"]


def test_an_ssh_that_cannot_be_started_is_no_fault_of_the_others(tmp_path: Path) -> None:
    outcome = visit(SshSettings(str(tmp_path / "none")), retries=2)
    assert (outcome.result, outcome.tries) == ("unreachable", 1)
    assert outcome.reason == "no ssh could be started here: No such file or directory"


def test_no_secret_is_shown() -> None:
    order = Order("install", key="5ec2e7" * 10)
    assert "5ec2e7" not in repr(order)


def removing(folder: Path, said: str | NotForgotten) -> tuple[Outcome, list[tuple[str, str]]]:
    asked: list[tuple[str, str]] = []

    async def unregistered(name: str, host: str) -> str:
        asked.append((name, host))
        if isinstance(said, NotForgotten):
            raise said
        return said

    ended = asdict(Said("end", outcome="removed", name="r1c01", text="kept: its journal"))
    settings = ssh(folder, saying({"kind": "hello", "text": "node7, Python 3.11.2"}, ended))
    limits = FleetSettings(1, 20.0, 0)
    fleet = Fleet([HOST], Order("remove"), b"", None, limits, settings, unregistered=unregistered)
    (outcome,) = asyncio.run(fleet.run())
    return outcome, asked


def test_who_was_uninstalled_is_taken_out_of_the_directory(tmp_path: Path) -> None:
    outcome, asked = removing(tmp_path, "r1c01 taken out of the directory")
    assert asked == [("r1c01", "node7")]
    assert outcome.result == "removed"
    assert outcome.reason == "kept: its journal; r1c01 taken out of the directory"
    outcome, _ = removing(tmp_path, NotForgotten("the directory may have r1c01 still"))
    assert (outcome.result, outcome.reason) == ("failed", "the directory may have r1c01 still")
