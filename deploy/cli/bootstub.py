"""`fabric bootstub`: a boot stub in the foreground, as hosts run them; or many, for load tests.

What it needs is imported when it runs; `--help` answers at once.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.cli import bootstub_install
from fabric.cli.exits import Exit, Failure
from fabric.cli.parser import Parser, bare, whole

if TYPE_CHECKING:
    from deploy.stub.assembly import Surroundings
    from deploy.stub.settings import StubConfig

MAX_COUNT = 1000
CACHE_MIB = 2048
FOLDER = "~/.local/state/fabric-bootstub"
DIRECTORY_VARIABLE, KEY_VARIABLE = "FABRIC_ZK", "FABRIC_CLUSTER_KEY_FILE"

MORE = """\
It takes commands of initiators over the bus, asks the repository that they name, installs managents, starts them, and
watches them. It keeps everything in its folder, and takes it up again when it is started anew; programs run on
meanwhile. It needs nothing that is special to its host.

SIGTERM or Ctrl-C ends it; programs go on, unless --stop-managents says otherwise. A folder is used by one boot stub at
a time. Where it can be reached from other hosts it needs the cluster's key. Exit code 78: a boot stub of another host
has its name in the directory, and answers."""


def register(subparsers: Any) -> None:
    """Add `bootstub`."""
    parser: Parser = bare(
        subparsers,
        "bootstub",
        "deploy.cli.bootstub:run",
        "run a boot stub, which hosts managents on this machine, in the foreground; or install some over ssh",
        [
            "fabric bootstub",
            "fabric bootstub --name r1c01 --domain /site/r1 --directory 192.0.2.1:2181/site --key-file cluster.key",
            "fabric bootstub --listen 192.0.2.7:7600 --key-file cluster.key --allow-root /srv/code",
            "fabric bootstub --name load --count 100 --dir /tmp/load    # load-1 to load-100 in one process",
            "fabric bootstub install --hosts hosts.txt --directory 192.0.2.1:2181/site --key-file cluster.key",
        ],
        MORE,
    )
    add = parser.add_argument
    add("--name", metavar="NAME", default="", help="its name, unique in the directory (the host's name)")
    add("--domain", metavar="PATH", default="", help="of the domain that its machine belongs to, such as /site/rack1")
    add("--dir", metavar="DIR", default="", help=f"its folder ({FOLDER}/NAME)")
    add(
        "--listen",
        metavar="HOST:PORT",
        default="",
        help="(the address towards the directory, else 127.0.0.1; any port)",
    )
    add("--advertise", metavar="HOST", default="", help="what others connect to, when it is not that of --listen")
    add("--directory", metavar="HOSTS", default="", help=f"register in this ZooKeeper (${DIRECTORY_VARIABLE})")
    add("--key-file", metavar="FILE", default="", help=f"the cluster's key, in hex (${KEY_VARIABLE})")
    add("--allow-root", metavar="DIR", action="append", default=[], help="file:// below this may be read; repeatable")
    add(
        "--answer-discovery",
        metavar="GROUP",
        default="",
        help="answer calls to a group, such as 239.255.76.1:7601 (off)",
    )
    add("--find-directory", metavar="GROUP", default="", help="ask there where the directory is (off)")
    add("--interface", metavar="ADDRESS", default="127.0.0.1", help="for both: this machine's there (127.0.0.1)")
    add("--stop-managents", action="store_true", help="stop the managents' programs when it ends")
    add("--cache-mib", metavar="N", type=whole(1, 1 << 20), default=CACHE_MIB, help=f"of code kept ({CACHE_MIB})")
    add("--count", metavar="N", type=whole(1, MAX_COUNT), default=1, help="host so many, as NAME-1 to NAME-N (1)")
    add("--log-level", choices=("debug", "info", "warning", "error"), default="info", help="(info)")
    bootstub_install.register(parser.add_subparsers(title="commands", metavar="[COMMAND]"))


def run(args: Namespace) -> int:
    from deploy.repository.content import CacheBusy
    from deploy.stub.assembly import assembled
    from deploy.stub.process import run_stubs
    from fabric.logs import set_up_log

    configs, surroundings = configured(args)
    set_up_log(args.log_level)
    try:
        return run_stubs(configs, lambda shared: assembled(shared, surroundings, _listening))
    except (CacheBusy, OSError) as error:
        raise Failure(f"boot stub: {error}") from None


def configured(args: Namespace) -> tuple[list[StubConfig], Surroundings]:
    """What the command line says. Raises Failure."""
    from deploy.stub.assembly import Surroundings
    from deploy.stub.settings import StubConfig

    name = args.name or host_name()
    _check_name(name)
    key = _key(args)
    directory = _directory(args)
    listen, advertise = _listen(args, directory), args.advertise or None
    if key is None and not _is_local(listen):
        raise Failure(
            f"--key-file: expected the cluster's key, since others reach {listen}, found none; make one: "
            "(umask 077; openssl rand -hex 32 > cluster.key), or --listen 127.0.0.1:0",
            Exit.USAGE,
        )
    if args.domain:
        _check_domain(args.domain)
    folder = Path(args.dir or f"{FOLDER}/{name}").expanduser().absolute()
    names = [name] if args.count == 1 else [f"{name}-{number}" for number in range(1, args.count + 1)]
    for one in names:
        _check_name(one)
    configs = [
        StubConfig(
            one,
            folder if args.count == 1 else folder / one,
            args.domain,
            listen,
            advertise,
            key,
            args.stop_managents,
        )
        for one in names
    ]
    groups = [_group(flag, text, args.interface, key) for flag, text in _discovery(args)]
    roots = tuple(Path(root).expanduser().absolute() for root in args.allow_root)
    return configs, Surroundings(
        cache=folder / "cache",
        cache_bytes=args.cache_mib << 20,
        roots=roots,
        directory=directory,
        key=key,
        answer=groups[0],
        find=groups[1],
    )


def host_name() -> str:
    """The host's own, as far as it can be a boot stub's."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:63].strip(".-") or "localhost"


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,62}[A-Za-z0-9_-])?", name, re.ASCII):
        raise Failure(f"--name: expected up to 64 letters, digits, '.', '_', '-', found {name[:100]!r}", Exit.USAGE)


def _check_domain(domain: str) -> None:
    from deploy.identity import BadIdentity, check_path

    try:
        check_path(domain)
    except BadIdentity as error:
        raise Failure(f"--domain: {error}", Exit.USAGE) from None


def _directory(args: Namespace) -> str:
    from zk.connect import parse

    directory = args.directory or os.environ.get(DIRECTORY_VARIABLE, "")
    try:
        if directory:
            parse(directory)
    except ValueError as error:
        raise Failure(f"--directory: {error}", Exit.USAGE) from None
    return str(directory)


def _key(args: Namespace) -> bytes | None:
    from fabric.config import read_cluster_key
    from fabric.config_values import ConfigError

    given = args.key_file or os.environ.get(KEY_VARIABLE)
    if not given:
        return None
    try:
        return read_cluster_key(Path(given), "--key-file" if args.key_file else f"${KEY_VARIABLE}")
    except ConfigError as error:
        raise Failure(str(error), Exit.USAGE) from None


def _listen(args: Namespace, directory: str) -> str:
    """Where it is told to, else at the address that the directory sees."""
    from deploy.reach import address_towards
    from fabric.config_values import HostPort

    if args.listen:
        kind = HostPort()
        try:
            kind.read(args.listen, True)
        except ValueError as error:
            raise Failure(f"--listen: expected {kind.expected}, found {error}", Exit.USAGE) from None
        return str(args.listen)
    if not directory:
        return "127.0.0.1:0"
    try:
        address = address_towards(directory)
    except OSError as error:
        raise Failure(f"--directory: there is no way to {directory}: {error}; or say --listen", Exit.USAGE) from None
    return f"[{address}]:0" if ":" in address else f"{address}:0"


def _is_local(listen: str) -> bool:
    from deploy.reach import is_loopback

    host = listen.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or is_loopback(host)
    except ValueError:
        return False


def _discovery(args: Namespace) -> tuple[tuple[str, str], ...]:
    return ("--answer-discovery", args.answer_discovery), ("--find-directory", args.find_directory)


def _group(flag: str, text: str, interface: str, key: bytes | None) -> Any:
    from deploy.discovery import BadGroup, parse_group

    if not text:
        return None
    if key is None:
        raise Failure(f"{flag}: expected --key-file too: without a key everybody could call and answer", Exit.USAGE)
    try:
        return parse_group(text, interface)
    except BadGroup as error:
        raise Failure(f"{flag}: {error}", Exit.USAGE) from None


def _listening(name: str, address: str) -> None:
    """For people and for programs that wait for it: on standard output, a line a boot stub."""
    print(f"boot stub {name} at {address}", flush=True, file=sys.stdout)
