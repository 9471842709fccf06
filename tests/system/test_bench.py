"""`fabric bench load` as a person types it: a short run on a fabric of its own, one on a fabric that is up, Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fabric.load.results import Result, read
from fabric.local.folder import MEMORY, default_path
from fabric.local.harness import LocalFabric
from tests.waiting import wait_until

pytestmark = pytest.mark.system

LOAD = [sys.executable, "-m", "deploy.cli.main", "bench", "load"]
SMALL = ["--racks", "2", "--compute", "2", "--storage", "1", "--driver", "null", "--agents-per-process", "2"]
SHORT = ["--for", "2s", "--warm-up", "500ms", "--flavor", "Tiny", "--count", "2"]


def ours() -> set[Path]:
    """Folders of fabrics that load tests brought up."""
    return {path for top in (MEMORY / default_path().parent.name, default_path().parent) for path in top.glob("load-*")}


def sane(found: Result, requests: int) -> None:
    assert found.holds, found.checks
    assert found.failures == ()
    assert found.requests >= requests
    assert found.latencies["create settled"].count > 0
    assert 0 < found.latencies["create settled"].p50_ms <= found.latencies["create settled"].max_ms
    assert found.traced is not None
    assert {step.step for step in found.traced.steps} >= set(range(1, 10))
    assert 0 < found.generator_share < 1
    assert found.counted.api_messages
    assert sum(second.create for second in found.seconds if second.at_s >= 0) > 0


def test_a_short_run_on_a_fabric_of_its_own(tmp_path: Path) -> None:
    before = ours()
    words = [*LOAD, *SMALL, *SHORT, "--clients", "2", "--output", str(tmp_path / "A.json")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = read(tmp_path / "A.json")
    sane(found, 4)
    assert [check.name for check in found.checks][-1] == "the audit finds nothing"
    roles = {group.role: group for group in found.groups}
    assert set(roles) == {
        "compute rack leaders", "storage leaders", "API", "ZooKeeper", "keeper and eyes", "load generator",
    }  # fmt: skip
    assert all(group.pss_mib > 1 and group.rss_mib >= group.pss_mib for group in found.groups)
    assert sum(group.cpu_s for group in found.groups) > 0
    assert found.counted.zookeeper_transactions
    assert "holds: no request is lost" in done.stdout
    assert ours() <= before


@pytest.fixture(scope="module")
def fabric() -> Iterator[LocalFabric]:
    with LocalFabric(racks=2, compute=2, storage=1, driver="null", agents_per_process=2) as up:
        yield up


def test_at_a_rate_on_a_fabric_that_is_up_of_which_nothing_is_left(fabric: LocalFabric, tmp_path: Path) -> None:
    words = [*LOAD, "--dir", str(fabric.folder.path), *SHORT, "--rate", "8/s", "--mix", "create=1,scale=1,delete=2"]
    words += ["--keep", "3", "--no-audit", "--output", str(tmp_path / "A.json")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = read(tmp_path / "A.json")
    sane(found, 4)
    assert found.per_s["all"] == pytest.approx(8, rel=0.3)
    with httpx.Client(base_url=fabric.api_url, timeout=10) as api:
        assert api.get("/v1/images").json()["items"] == []
        standing = api.get("/v1/deployments", params={"limit": 1000}).json()["items"]
    assert {one["state"] for one in standing} <= {"deleted", "deleting"}


def test_what_does_not_fit_is_counted_with_its_reason_and_another_exit_code(fabric: LocalFabric) -> None:
    words = [*LOAD, "--dir", str(fabric.folder.path), "--clients", "1", "--for", "200ms", "--warm-up", "0s", "--cold"]
    words += ["--flavor", "XLarge", "--count", "20", "--max-per-node", "2", "--no-audit"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "20 instances of XLarge do not fit in this fabric" in done.stdout


def test_ctrl_c_shows_what_was_measured_and_takes_down(tmp_path: Path) -> None:
    before = ours()
    words = [*LOAD, *SMALL, "--clients", "2", "--for", "1m", "--warm-up", "0s", "--output", str(tmp_path / "A.json")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        assert started.stderr
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(iter(started.stderr.readline, "")), daemon=True)  # type: ignore[union-attr]
        reader.start()
        wait_until(lambda: any("measuring" in line for line in lines), 40, "it to measure")
        started.send_signal(signal.SIGINT)
        assert started.wait(30) == 130
        reader.join(5)
        assert started.stdout
        assert "(interrupted)" in started.stdout.read()
    found = read(tmp_path / "A.json")
    assert found.interrupted
    assert found.requests > 0
    assert 0 < found.ran_s < 30
    assert ours() <= before
