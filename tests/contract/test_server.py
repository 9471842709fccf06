"""Servers as child processes: found, started, restarted, gone with their parent, and clear when they can't start."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from tests.conftest import zookeeper_server
from tests.waiting import wait_until
from tests.zookeeper import installation, server_session
from zk.server import DEBIAN_JARS, Installation, Server, ServerFailed, ask_status, find_zookeeper, free_ports


def test_a_server_starts_serves_and_ends(tmp_path: Path) -> None:
    said: list[str] = []
    server = Server(installation(), tmp_path / "a", say=said.append)
    assert (server.pid, server.port, server.status()) == (None, 0, None)
    server.start()
    try:
        status = server.status()
        assert status is not None
        assert status.mode == "standalone"
        assert status.version[0] in "3456789"
        assert server.hosts == f"127.0.0.1:{server.port}"
        assert said[0].startswith(f"starting ZooKeeper on {server.hosts}")
        assert said[1].startswith(f"ZooKeeper serves on {server.hosts} after ")
        with pytest.raises(RuntimeError, match="running already"):
            server.launch()
        pid, port = server.pid, server.port
        server.kill()
        assert (server.pid, server.status()) == (None, None)
        server.start()
        assert server.port == port
        assert server.pid not in (None, pid)
    finally:
        server.stop()
    assert server.pid is None
    server.stop()


def test_a_server_that_can_not_start_says_why(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = Server(installation(), tmp_path, port=port)
        with pytest.raises(ServerFailed) as failed:
            server.start(wait_s=20)
    assert f"ZooKeeper on 127.0.0.1:{port} ended; the end of {tmp_path}/zookeeper.log" in str(failed.value)
    assert "BindException" in str(failed.value)
    assert server.pid is None


def test_a_server_that_does_not_answer_in_time_is_ended(tmp_path: Path) -> None:
    sleeper = tmp_path / "java"
    sleeper.write_text("#!/bin/sh\necho thinking\nexec sleep 60\n")
    sleeper.chmod(0o755)
    server = Server(Installation(str(sleeper), "", "a test"), tmp_path / "a")
    with pytest.raises(ServerFailed, match="did not answer within 0\\.5 s") as failed:
        server.start(wait_s=0.5)
    assert "    thinking" in str(failed.value)
    assert server.pid is None


PARENT = """
import sys, time
from pathlib import Path
from zk.server import Server, find_zookeeper
server = Server(find_zookeeper(), Path(sys.argv[1]))
server.start()
print(server.pid, server.port, flush=True)
time.sleep(60)
"""


def test_a_server_dies_with_its_parent(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, port = map(int, parent.stdout.readline().split())
        assert ask_status(port) is not None
        parent.kill()
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), what="the end of the server")


def test_a_server_is_not_started_by_a_thread_that_would_take_it_along(tmp_path: Path) -> None:
    raised: list[Exception] = []

    def start() -> None:
        try:
            zookeeper_server(tmp_path).start()
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "from the main thread" in str(raised[0])


def test_it_opens_no_file_for_writing_outside_its_folder(tmp_path: Path) -> None:
    async def session() -> None:
        async with server_session(server.hosts):
            pass

    with zookeeper_server(tmp_path) as server:
        asyncio.run(session())
        open_files = Path(f"/proc/{server.pid}/fd")
        written = [os.readlink(each) for each in open_files.iterdir() if each.exists() and _writable(each)]
        assert {path for path in written if path.startswith("/") and str(tmp_path) not in path} <= {"/dev/null"}
        assert any(path.startswith(f"{tmp_path}/data/version-2/log.") for path in written)
        assert list(Path("/tmp").glob(f"hsperfdata_*/{server.pid}")) == []


def _writable(fd: Path) -> bool:
    flags = Path(str(fd).replace("/fd/", "/fdinfo/")).read_text().split("flags:")[1].split()[0]
    return int(flags, 8) & os.O_ACCMODE != os.O_RDONLY


def test_zookeeper_home_comes_before_the_package(tmp_path: Path) -> None:
    """A folder laid out as the project's archive is, of the jars that are here."""
    package = DEBIAN_JARS / "zookeeper.jar"
    if not package.exists():
        pytest.skip("needs the jars of Debian's package")
    manifest = zipfile.ZipFile(package).read("META-INF/MANIFEST.MF").decode().replace("\r\n ", "")
    (needed,) = [line for line in manifest.splitlines() if line.startswith("Class-Path:")]
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "zookeeper-3.8.0.jar").symlink_to(package)
    for jar in (*map(Path, needed.split()[1:]), DEBIAN_JARS / "slf4j-simple.jar"):
        if jar.exists():
            (tmp_path / "lib" / jar.name).symlink_to(jar)
    found = find_zookeeper({**os.environ, "ZOOKEEPER_HOME": str(tmp_path)})
    assert found is not None
    assert found.origin == f"ZOOKEEPER_HOME={tmp_path}"
    with Server(found, tmp_path / "data") as server:
        assert server.status() is not None


def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    nowhere = {"PATH": str(tmp_path)}
    assert find_zookeeper(nowhere) is None, "no java"
    java = tmp_path / "java"
    java.write_text("")
    java.chmod(0o755)
    assert find_zookeeper(nowhere, debian_jars=tmp_path) is None, "no jars"
    (tmp_path / "zookeeper.jar").touch()
    found = find_zookeeper(nowhere, debian_jars=tmp_path)
    assert found is not None
    assert found.java == str(java)
    with pytest.raises(ValueError, match=r"expected lib/zookeeper-\*.jar there, found none"):
        find_zookeeper({**nowhere, "ZOOKEEPER_HOME": str(tmp_path)})


def test_java_home_comes_before_the_path(tmp_path: Path) -> None:
    for folder in ("bin", "path"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "java").write_text("")
        (tmp_path / folder / "java").chmod(0o755)
    (tmp_path / "zookeeper.jar").touch()
    environ = {"PATH": str(tmp_path / "path"), "JAVA_HOME": str(tmp_path)}
    found = find_zookeeper(environ, debian_jars=tmp_path)
    assert found is not None
    assert found.java == str(tmp_path / "bin" / "java")
    found = find_zookeeper({**environ, "JAVA_HOME": str(tmp_path / "gone")}, debian_jars=tmp_path)
    assert found is not None
    assert found.java == str(tmp_path / "path" / "java")


def test_free_ports_are_different() -> None:
    assert len(set(free_ports(50))) == 50
