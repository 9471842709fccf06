"""The configuration of `fabric agent` and `fabric api`: defaults < TOML file < environment (FABRIC_*) < flags.

Theory of operation. A configuration is a table of `Key`s (config_keys.py); from it come the accepted TOML keys, the
environment variables (`capacity.vcpus` is FABRIC_CAPACITY_VCPUS), the flags (`--capacity-vcpus`) and the annotated
example file, so that none of the four can forget another. `gather` reads the sources, strictly: an unknown key, a
wrong type or a value out of range is one `ConfigError` that names file, variable or flag, the key, what was expected
and what was found. `agent_config` and `api_config` turn the values into what the processes take.

Capacity is what a node offers to instances: per dimension exactly the number that is declared, or, with "auto", what
the host has (`vcpus`: processors this process may use; `memory_mib`: /proc/meminfo; `disk_mib`: the file system of
the state directory), less what the host keeps for itself ([host_reserve]), times the overcommit ratio ([overcommit]).

The cluster key is a secret: it has a file of its own, which only its owner may read, and appears in no message.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import os
import re
import socket
import stat
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabric.config_keys import AGENT_KEYS, API_KEYS, FOREIGN_VARIABLES, Key
from fabric.config_values import ConfigError, shown, suggestion
from fabric.resources import DIMENSIONS, Resources
from fabric.roles.settings import Settings
from fabric.wire import KEY_BYTES
from zk import connect

if TYPE_CHECKING:
    from fabric.api.settings import ApiConfig
    from fabric.runtime.settings import AgentConfig

MAX_FILE_BYTES = 256 * 1024
PREFIX = "FABRIC_"
EVERY_ADDRESS = ("0.0.0.0", "::")
ORDERED = (
    ("hop_margin_s", "offer_wait_s"),
    ("hop_margin_s", "command_wait_s"),
    ("heartbeat_interval_s", "silent_after_s"),
    ("retry_min_s", "retry_max_s"),
)
"""Limits of which the first must be less than the second."""


@dataclass(frozen=True, slots=True)
class Values:
    """What the sources said, by key path; `where` each value came from, for errors about what it means."""

    by_path: Mapping[str, Any]
    where: Mapping[str, str]

    def __getitem__(self, path: str) -> Any:
        return self.by_path[path]

    def error(self, path: str, expected: str, found: str) -> ConfigError:
        return ConfigError(f"{self.where[path]}: {path}: expected {expected}, found {found}")

    def section(self, name: str) -> dict[str, Any]:
        return {path.partition(".")[2]: value for path, value in self.by_path.items() if path.startswith(name + ".")}


def gather(
    keys: Sequence[Key],
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, str] | None = None,
) -> Values:
    """Read all sources. `flags`: by key path, as text. Raises ConfigError."""
    known = {key.path: key for key in keys}
    given: dict[str, tuple[object, str, bool]] = {}
    if file is not None:
        for path, value in _read_file(file, known):
            given[path] = (value, f"file {file}", False)
    for path, variable, text in _read_environment(environment or {}, known):
        given[path] = (text, f"environment variable {variable}", True)
    for path, text in (flags or {}).items():
        given[path] = (text, f"flag {known[path].flag}", True)
    by_path: dict[str, Any] = {}
    where: dict[str, str] = {}
    for path, key in known.items():
        value, source, textual = given.get(path, (key.default, "default", False))
        where[path] = source
        try:
            by_path[path] = None if value is None else key.kind.read(value, textual)
        except ValueError as error:
            raise ConfigError(f"{source}: {path}: expected {key.kind.expected}, found {error}") from None
    for path, key in known.items():  # what is wrong is told before what is missing
        if key.default is None and path not in given and not key.optional:
            raise ConfigError(
                f"{path}: expected {key.kind.expected}, found nothing; "
                f"set it in the TOML file, by {key.variable}, or by {key.flag}"
            )
    return Values(by_path, where)


def _read_file(file: Path, known: Mapping[str, Key]) -> Iterator[tuple[str, object]]:
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"file {file}: expected a readable TOML file, found: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"file {file}: expected at most {MAX_FILE_BYTES} bytes, found more")
    try:
        content = tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"file {file}: expected TOML, found: {error}") from None
    sections = {path.partition(".")[0] for path in known if "." in path}
    for name, value in content.items():
        if name in sections:
            if not isinstance(value, dict):
                raise ConfigError(f"file {file}: {name}: expected a table [{name}], found {shown(value)}")
            for key, inner in value.items():
                yield _known(f"{name}.{key}", known, file), inner
        else:
            yield _known(name, known, file), value


def _known(path: str, known: Mapping[str, Key], file: Path) -> str:
    if path not in known or known[path].hidden:
        visible = [key.path for key in known.values() if not key.hidden]
        raise ConfigError(f"file {file}: expected only known keys, found {shown(path)}{suggestion(path, visible)}")
    return path


def _read_environment(environment: Mapping[str, str], known: Mapping[str, Key]) -> Iterator[tuple[str, str, str]]:
    """An empty variable counts as none, as service managers have it."""
    by_variable = {key.variable: path for path, key in known.items()}
    everybodys = {key.variable for key in (*AGENT_KEYS, *API_KEYS)} | FOREIGN_VARIABLES
    for variable, text in sorted(environment.items()):
        if variable in by_variable and text:
            yield by_variable[variable], variable, text
        elif variable.startswith(PREFIX) and variable not in everybodys:
            close = suggestion(variable, everybodys)
            raise ConfigError(f"environment variable {variable}: expected only known names with {PREFIX}{close}")


# --- what the processes take -----------------------------------------------------------------------------------------


def agent_config(
    file: Path | None = None, environment: Mapping[str, str] | None = None, flags: Mapping[str, str] | None = None
) -> AgentConfig:
    """The configuration of one agent. Raises ConfigError."""
    from fabric.runtime.settings import AgentConfig

    values = gather(AGENT_KEYS, file, environment, flags)
    listen, data_listen = values["listen"], values["data_listen"]
    zookeeper = _zookeeper(values)
    every = listen[0] in EVERY_ADDRESS
    return AgentConfig(
        node=values["node"] or _host_name(),
        rack=values["rack"],
        layer=values["layer"],
        zookeeper=zookeeper,
        state_dir=values["state_dir"],
        total=capacity(values),
        listen=_joined(listen),
        data_listen=_joined(data_listen),
        advertise=values["advertise"] or (own_address(zookeeper) if every else None),
        driver=values["driver"],
        cluster_key=_cluster_key(values, [listen[0], data_listen[0]]),
        cache_bytes=values["cache_size"],
        store_bytes=values["store_size"],
        scrub_mib_s=values["scrub_mib_s"],
        scrub_every_s=values["scrub_every_s"],
        lifeline_fd=values["lifeline_fd"],
        faults=values["faults"],
        zookeeper_wait_s=values["zookeeper_wait_s"],
        log_level=values["log_level"],
        managent=values["managent"] or "",
        settings=settings(values),
    )


def api_config(
    file: Path | None = None, environment: Mapping[str, str] | None = None, flags: Mapping[str, str] | None = None
) -> ApiConfig:
    """The configuration of one API process. Raises ConfigError."""
    from fabric.api.settings import ApiConfig, ApiLimits
    from fabric.flavors import BadFlavors, load_flavors

    values = gather(API_KEYS, file, environment, flags)
    try:
        flavors = load_flavors(values["flavors_file"])
    except BadFlavors as error:
        raise ConfigError(f"{values.where['flavors_file']}: flavors_file: {error}") from None
    host, port = values["listen"]
    peer_host, peer_port = values["peer_listen"]
    return ApiConfig(
        zookeeper=_zookeeper(values),
        host=host,
        port=port,
        session_timeout_s=values["session_timeout_s"],
        cluster_key=_cluster_key(values, [peer_host]),
        flavors=flavors,
        settings=settings(values),
        limits=ApiLimits(connect_wait_s=values["zookeeper_wait_s"]),
        peer_bind=f"tcp://{peer_host}:{peer_port}",
        log_level=values["log_level"],
        lifeline_fd=values["lifeline_fd"],
        faults=values["faults"],
    )


def settings(values: Values) -> Settings:
    """[limits] and the session's timeout. Raises ConfigError when two of them contradict each other."""
    made = dataclasses.replace(Settings(session_timeout_s=values["session_timeout_s"]), **values.section("limits"))
    for low, high in ORDERED:
        if getattr(made, low) >= getattr(made, high):
            expected = f"more than limits.{low} ({getattr(made, low):g})"
            raise values.error(f"limits.{high}", expected, f"{getattr(made, high):g}")
    waits_s = made.command_wait_s - made.hop_margin_s
    if made.answer_linger_s >= waits_s:  # every agent that lingers would count as one that does not answer
        expected = f"less than a rack leader waits for it (command_wait_s less hop_margin_s: {waits_s:g})"
        raise values.error("limits.answer_linger_s", expected, f"{made.answer_linger_s:g}")
    return made


def _zookeeper(values: Values) -> str:
    text: str = values["zk"]
    try:
        connect.parse(text)
    except ValueError as error:
        raise ConfigError(f"{values.where['zk']}: zk: {error}") from None
    return text


def capacity(values: Values) -> Resources:
    """What the node offers. Raises ConfigError when the host keeps all of a dimension for itself."""
    return Resources(*(_offered(values, dimension) for dimension in DIMENSIONS))


def _offered(values: Values, dimension: str) -> int:
    declared: int | None = values[f"capacity.{dimension}"]
    if declared is not None:
        return declared
    match dimension:
        case "vcpus":
            found = len(os.sched_getaffinity(0))
        case "memory_mib":
            found = _host_memory_mib()
        case _:
            found = _disk_mib(values["state_dir"])
    kept: int = values[f"host_reserve.{dimension}"]
    if kept >= found:
        raise values.error(f"host_reserve.{dimension}", f"less than the {found} that this host has", str(kept))
    return int((found - kept) * values[f"overcommit.{dimension}"])


def _host_memory_mib() -> int:
    text = Path("/proc/meminfo").read_text()
    match = re.search(r"^MemTotal: +(\d+) kB$", text, re.MULTILINE)
    if match is None:
        raise ConfigError("capacity.memory_mib: expected MemTotal in /proc/meminfo, found none; declare it")
    return int(match[1]) // 1024


def _disk_mib(state_dir: Path) -> int:
    """Of the file system where the state directory is, or will be: what an unprivileged user may fill of it in all."""
    place = next(path for path in (state_dir, *state_dir.parents) if path.exists())
    found = os.statvfs(place)
    return (found.f_blocks - found.f_bfree + found.f_bavail) * found.f_frsize // (1 << 20)


def _host_name() -> str:
    name = socket.gethostname().partition(".")[0].lower()
    if not re.fullmatch(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?", name):
        raise ConfigError(f"node: expected a host name that is a node's name too, found {shown(name)}; set node")
    return name


def _joined(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def own_address(zookeeper: str) -> str:
    """The address that this host has on its way to the ensemble: where others most likely reach it. Sends nothing.
    Raises ConfigError when there is no way."""
    servers = connect.parse(zookeeper).servers
    for host, port in servers:
        with contextlib.suppress(OSError):
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(address)
                return str(probe.getsockname()[0])
    raise ConfigError(
        f"advertise: expected it, or a way to one of {', '.join(host for host, _ in servers)} that tells this host's "
        "address, found neither; set advertise"
    )


def _cluster_key(values: Values, listens: Sequence[str]) -> bytes | None:
    """The key, which who listens beyond this machine must have: without it, anybody's frames are obeyed."""
    path: Path | None = values["cluster_key_file"]
    if path is None:
        open_to = next((host for host in listens if not _is_loopback(host)), None)
        if open_to is not None:
            raise ConfigError(
                f"cluster_key_file: expected a file with the cluster's key, since this process listens at {open_to}, "
                "found nothing; make one: (umask 077; openssl rand -hex 32 > cluster.key)"
            )
        return None
    return read_cluster_key(path, values.where["cluster_key_file"])


def read_cluster_key(path: Path, where: str) -> bytes:
    """32 bytes as 64 hex digits, in a file that only its owner may read. Raises ConfigError; never shows the
    content."""
    expected = f"{where}: cluster_key_file: expected"
    try:
        with path.open("rb") as file:
            mode, data = os.fstat(file.fileno()).st_mode, file.read(1024)
    except OSError as error:
        raise ConfigError(f"{expected} a readable file, found {shown(str(path))}: {error.strerror}") from None
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(
            f"{expected} that only its owner may read {path}, found mode {stat.S_IMODE(mode):04o}; chmod 600 it"
        )
    text = data.strip()
    if not re.fullmatch(rb"[0-9A-Fa-f]{%d}" % (2 * KEY_BYTES), text):
        digits = len(re.findall(rb"[0-9A-Fa-f]", text))
        raise ConfigError(f"{expected} {2 * KEY_BYTES} hex digits in {path}, found {digits} in {len(text)} characters")
    return bytes.fromhex(text.decode())


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
