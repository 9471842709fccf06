"""A real ZooKeeper server as a child process: for a local fabric, and for tests. Several that are one: zk/ensemble.py.

Theory of operation. `find_zookeeper` looks for an installation: the one that ZOOKEEPER_HOME names, else Debian's
package. A `Server` is a java process of it with its configuration, log and data in one folder, listening on
127.0.0.1, or where `host` says. It is ready when it answers the four-letter command `srvr` with its mode. It dies
with its parent: the child asks the kernel for that (PR_SET_PDEATHSIG) and then becomes java. The kernel means the
parent's *thread*, so servers are started from the main thread. It is in a session of its own, so that Ctrl-C at a
terminal reaches the parent alone, which stops it in order.

Defaults are for small fabrics on a laptop: short ticks, so that sessions of 1 s are possible and expire on time;
little heap and the fast compiler only, which halves the time to start; no fsync (what it has acknowledged survives
the death of the process, though not of the machine; `durable=True` for that). Requests pass through fewer threads than
by ZooKeeper's own defaults: who reads a socket, or commits, does the work itself and hands it to no pool. For small
requests the pools are but wake-ups: without them a server's CPU for a request, or for the ping of an idle session, was
about half of what it was with them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"
READY_WAIT_S = 30.0
STOP_WAIT_S = 5.0
POLL_EVERY_S = 0.02
COMMAND_WAIT_S = 1.0
INIT_LIMIT_MS, SYNC_LIMIT_MS = 10_000, 2_500
"""For a follower to catch up with its leader, and to be in touch with it then; ZooKeeper counts both in ticks."""
LISTEN_BACKLOG = 1024
"""Clients that begin to connect at one moment, as all of a fabric do after an outage: ZooKeeper's own 50 has the kernel
drop the others', who try again after 1, 3, 7 s."""
LOG_LINES_SHOWN = 15
PORT_TRIES = 5

DEBIAN_JARS = Path("/usr/share/java")
_MAIN = "org.apache.zookeeper.server.quorum.QuorumPeerMain"

# Runs in the child: die with the parent, unless it is dead already, then become the program.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != int(sys.argv[1]): sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""

_LOGBACK = """<configuration><appender name="out" class="ch.qos.logback.core.ConsoleAppender"><encoder>
<pattern>%d{ISO8601} %-5p %c{1} %m%n</pattern></encoder></appender>
<root level="WARN"><appender-ref ref="out"/></root></configuration>
"""
_LOG4J = """log4j.rootLogger=WARN, out
log4j.appender.out=org.apache.log4j.ConsoleAppender
log4j.appender.out.layout=org.apache.log4j.PatternLayout
log4j.appender.out.layout.ConversionPattern=%d{ISO8601} %-5p %c{1} %m%n
"""


class ServerFailed(RuntimeError):
    """A server did not start or not answer in time; the message has the last lines of its log."""


@dataclass(frozen=True, slots=True)
class Installation:
    """`java`: the program. `class_path`: as java takes it. `origin`: where it was found, for people."""

    java: str
    class_path: str
    origin: str


@dataclass(frozen=True, slots=True)
class Status:
    """What a server says of itself. `mode`: standalone, leader, follower or observer. `zxid`: of its last transaction;
    the difference of two is the number of transactions between. `received`, `sent`: packets since it began, pings of
    sessions among them."""

    mode: str
    version: str
    znodes: int
    zxid: int = 0
    received: int = 0
    sent: int = 0


@dataclass(frozen=True, slots=True)
class Peer:
    """One member of an ensemble, by its ports."""

    my_id: int
    client_port: int
    quorum_port: int
    election_port: int
    host: str = HOST


def find_zookeeper(environ: Mapping[str, str] = os.environ, debian_jars: Path = DEBIAN_JARS) -> Installation | None:
    """ZOOKEEPER_HOME (lib/zookeeper-*.jar below it), else Debian's package, with the `java` of JAVA_HOME or PATH. None
    when there is none; ValueError when ZOOKEEPER_HOME is set, and no ZooKeeper is there."""
    java_home, path = environ.get("JAVA_HOME"), environ.get("PATH", os.defpath)
    java = (java_home and shutil.which("java", path=os.path.join(java_home, "bin"))) or shutil.which("java", path=path)
    home = environ.get("ZOOKEEPER_HOME")
    if home:
        if not list(Path(home).glob("lib/zookeeper-*.jar")):
            raise ValueError(f"ZOOKEEPER_HOME={home}: expected lib/zookeeper-*.jar there, found none (or unset it)")
        return Installation(java, os.path.join(home, "lib", "*"), f"ZOOKEEPER_HOME={home}") if java else None
    server = debian_jars / "zookeeper.jar"
    if java is None or not server.exists():
        return None
    # The package's jar names the jars it needs in its manifest; it leaves the choice of a logger to its user.
    return Installation(java, f"{server}:{debian_jars / 'slf4j-simple.jar'}", f"Debian's package ({server})")


def ask_status(port: int, host: str = HOST, wait_s: float = COMMAND_WAIT_S) -> Status | None:
    """The answer to `srvr`; None when nobody listens, or the server does not serve (an ensemble without a quorum)."""
    try:
        with socket.create_connection((host, port), timeout=wait_s) as connection:
            connection.sendall(b"srvr")
            answer = b"".join(iter(lambda: connection.recv(4096), b"")).decode("utf-8", "replace")
    except OSError:
        return None
    fields = dict(line.split(": ", 1) for line in answer.splitlines() if ": " in line)
    if "Mode" not in fields:
        return None
    version = fields.get("Zookeeper version", "unknown").split("-")[0].split(",")[0]
    return Status(
        fields["Mode"],
        version,
        int(fields.get("Node count", "0")),
        int(fields.get("Zxid", "0x0"), 16),
        int(fields.get("Received", "0")),
        int(fields.get("Sent", "0")),
    )


def wait_serving(
    port: int,
    wait_s: float = READY_WAIT_S,
    *,
    host: str = HOST,
    began: float = 0.0,
    alive: Callable[[], bool] = lambda: True,
) -> bool:
    """Wait until the server that is starting on this port serves; whether it does, within `wait_s` and while `alive`.
    `began`: when it was started (time.monotonic), if not just now."""
    now = time.monotonic()
    began, deadline = began or now, now + wait_s
    # A server asked in the wrong moment of its start never answers: be impatient at first.
    while ask_status(port, host, min(COMMAND_WAIT_S, 0.1 + (time.monotonic() - began) / 4)) is None:
        if not alive() or time.monotonic() > deadline:
            return False
        time.sleep(POLL_EVERY_S)
    return True


class Server:
    """One server; its configuration, log and data are in `data_dir`, which is made if missing and never removed.

    `host`: where it listens. `port`: 0 picks a free one at the first start, kept from then on. `tick_ms`: ZooKeeper's
    unit of time; the shortest session is two ticks. `peers` and `me`: for a member of an ensemble. `say` gets a line
    for what takes a while."""

    def __init__(
        self,
        installation: Installation,
        data_dir: Path,
        *,
        host: str = HOST,
        port: int = 0,
        tick_ms: int = 500,
        heap_mib: int = 256,
        durable: bool = False,
        peers: Sequence[Peer] = (),
        me: Peer | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._installation = installation
        self._dir = data_dir.absolute()
        self._host = me.host if me else host
        self._port = me.client_port if me else port
        self._tick_ms = tick_ms
        self._heap_mib = heap_mib
        self._durable = durable
        self._peers = tuple(peers)
        self._me = me
        self._say = say or (lambda line: None)
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0.0

    @property
    def port(self) -> int:
        return self._port

    @property
    def hosts(self) -> str:
        """The connect string."""
        return f"{self._host}:{self._port}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def log_path(self) -> Path:
        return self._dir / "zookeeper.log"

    def status(self) -> Status | None:
        return ask_status(self._port, self._host)

    def start(self, wait_s: float = READY_WAIT_S) -> None:
        """Start and wait until it serves. Raises ServerFailed. Starting again uses the same port and data."""
        tries = PORT_TRIES if self._port == 0 else 1
        for left in reversed(range(tries)):
            if tries > 1:
                self._port = free_ports(1)[0]
            self.launch()
            try:
                return self.wait_ready(wait_s)
            except ServerFailed as failure:
                # Between finding a free port and listening on it another process may have taken it.
                if not left or "BindException" not in str(failure):
                    raise
            except BaseException:
                self.kill()
                raise

    def launch(self) -> None:
        """Start the process without waiting for it to serve."""
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("start servers from the main thread: they die with the thread that started them")
        if self.pid is not None:
            raise RuntimeError(f"the server on port {self._port} is running already (pid {self.pid})")
        self._say(f"starting ZooKeeper on {self.hosts}, from {self._installation.origin}")
        self._began = time.monotonic()
        command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *self._command()]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self._dir, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def wait_ready(self, wait_s: float = READY_WAIT_S) -> None:
        """Wait until it serves; ends it and raises ServerFailed when it does not."""
        serves = wait_serving(
            self._port, wait_s, host=self._host, began=self._began, alive=lambda: self.pid is not None
        )
        if not serves:
            trouble = "ended" if self.pid is None else f"did not answer within {wait_s:g} s"
            self.kill()
            said = self._log_tail()
            raise ServerFailed(f"ZooKeeper on {self.hosts} {trouble}; the end of {self.log_path}:\n{said}")
        self._say(f"ZooKeeper serves on {self.hosts} after {time.monotonic() - self._began:.2f} s")

    def stop(self, grace_s: float = STOP_WAIT_S) -> None:
        """TERM, then KILL after `grace_s`. Fine when it is not running."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(grace_s)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """KILL, as a crash would. Its data stay."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def pause(self) -> None:
        """Stop it from running without ending it: it holds its connections and says nothing, as a hung machine does.
        Returns when all of its threads have stopped."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _command(self) -> list[str]:
        self._dir.mkdir(parents=True, exist_ok=True)
        config = {
            "dataDir": str(self._dir / "data"),
            "clientPort": self._port,
            "clientPortAddress": self._host,
            "tickTime": self._tick_ms,
            "minSessionTimeout": 2 * self._tick_ms,
            "maxSessionTimeout": 60_000,
            "maxClientCnxns": 0,
            "clientPortListenBacklog": LISTEN_BACKLOG,
            "initLimit": -(-INIT_LIMIT_MS // self._tick_ms),
            "syncLimit": -(-SYNC_LIMIT_MS // self._tick_ms),
            "admin.enableServer": "false",
            "4lw.commands.whitelist": "srvr,ruok,mntr",
            "autopurge.purgeInterval": 1,
            "autopurge.snapRetainCount": 3,
        }
        for peer in self._peers:
            config[f"server.{peer.my_id}"] = f"{peer.host}:{peer.quorum_port}:{peer.election_port}"
        (self._dir / "data").mkdir(exist_ok=True)
        if self._me is not None:
            (self._dir / "data" / "myid").write_text(f"{self._me.my_id}\n")
        (self._dir / "zoo.cfg").write_text("".join(f"{key}={value}\n" for key, value in config.items()))
        (self._dir / "logback.xml").write_text(_LOGBACK)
        (self._dir / "log4j.properties").write_text(_LOG4J)
        return [
            self._installation.java,
            f"-Xmx{self._heap_mib}m",
            "-XX:TieredStopAtLevel=1",
            "-XX:+UseSerialGC",
            "-XX:-UsePerfData",  # leaves files in /tmp when it is killed
            "-XX:+ExitOnOutOfMemoryError",
            f"-Djava.io.tmpdir={self._dir}",
            f"-Dzookeeper.forceSync={'yes' if self._durable else 'no'}",
            "-Dzookeeper.preAllocSize=1024",
            "-Dzookeeper.nio.numWorkerThreads=0",  # see the module
            "-Dzookeeper.commitProcessor.numWorkerThreads=0",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            f"-Dlogback.configurationFile={self._dir / 'logback.xml'}",
            f"-Dlog4j.configuration=file:{self._dir / 'log4j.properties'}",
            "-cp",
            self._installation.class_path,
            _MAIN,
            str(self._dir / "zoo.cfg"),
        ]

    def _log_tail(self) -> str:
        try:
            lines = self.log_path.read_text("utf-8", "replace").splitlines()
        except OSError:
            return "(no log)"
        return "\n".join(f"    {line}" for line in lines[-LOG_LINES_SHOWN:]) or "    (empty)"


def free_ports(count: int) -> list[int]:
    """Ports on 127.0.0.1 that were free a moment ago, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((HOST, 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()
