"""`fabric bootstub install --hosts FILE`, and `uninstall`: the first step on real machines (deploy/ssh).

The arguments, and what is checked of them before any host is asked. What is shown is deploy.cli.installing's.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabric.cli.exits import Exit, Failure
from fabric.cli.parser import Parser, bare, pair, seconds, whole

if TYPE_CHECKING:
    from deploy.ssh.bundle import Bundle
    from deploy.ssh.host.orders import Order
    from deploy.ssh.hosts import Host

DIRECTORY_VARIABLE = "FABRIC_ZK"
MAX_HOSTS_BYTES = 8 << 20
MAX_PARALLEL = 250
"""Each is a process with three pipes: so many fit the usual limit of 1,024 open files."""

FILE = """\
FILE names a host a line: [user@]host[:port], then name=NAME and domain=PATH where wanted; # begins a comment, IPv6
addresses stand in brackets. ssh is the system's, with your ~/.ssh/config, agent and known hosts; it asks nothing."""

INSTALLED = f"""\
{FILE}
Each host needs sshd and Python 3.11 or later. The packages that run here are copied into an environment of their own
there; what they need comes from where the host's pip looks, or with --wheels from here. Running it again changes only
what differs, and restarts a boot stub only when it must; its managents run on, and are adopted.
Exit codes: 0 all is as it should be; 1 some hosts failed or could not be reached; 3 with --check: something differs."""

REMOVED = f"""\
{FILE}
Refused on a host where managents run, unless --purge ends them too. With --directory (${DIRECTORY_VARIABLE}) its entry
there goes, too: what is to be removed from there counts as removed then; else see: fabric stub remove."""


def register(subparsers: Any) -> None:
    """Add `install` and `uninstall` to the sub-commands of `fabric bootstub`."""
    install = _command(
        subparsers,
        "install",
        "install and start a boot stub on each host of a file, over ssh",
        [
            "fabric bootstub install --hosts hosts.txt --directory 192.0.2.1:2181/site --key-file cluster.key",
            "fabric bootstub install --hosts hosts.txt --directory 192.0.2.1:2181/site --key-file cluster.key --check",
            "fabric bootstub install --hosts hosts.txt --wheels ./wheels --key-file cluster.key    # offline",
        ],
        INSTALLED,
    )
    add = install.add_argument
    add("--check", action="store_true", help="only tell what would be done")
    stub = install.add_argument_group("the boot stubs")
    add = stub.add_argument
    add("--directory", metavar="HOSTS", default="", help=f"the ZooKeeper where they register (${DIRECTORY_VARIABLE})")
    add("--key-file", type=Path, metavar="FILE", help="the cluster's key, here; copied to a file for its owner alone")
    add("--listen", metavar="HOST:PORT", default="", help="on every host (each one's address towards the directory)")
    add("--domain", metavar="PATH", default="", help="of hosts that have no domain= in the file")
    add("--allow-root", metavar="DIR", action="append", default=[], help="file:// below this may be read; repeatable")
    add("--restart", action="store_true", help="also when nothing differs")
    add("--supervisor", choices=("auto", "systemd", "process"), default="auto", help="what keeps them (auto)")
    add("--answer-wait", type=seconds, metavar="S", default=30.0, help="for one to listen, and to register (30 each)")
    add("more", nargs="*", metavar="ARGUMENT", help="after --: further ones of 'fabric bootstub', such as --log-level")
    code = install.add_mutually_exclusive_group()
    code.add_argument("--wheels", type=Path, metavar="DIR", help="a folder with the wheels of all packages needed")
    code.add_argument("--python-env", metavar="PATH", default="", help="an environment there that has the fabric")
    _reaching(install)
    uninstall = _command(
        subparsers,
        "uninstall",
        "stop the boot stub on each host of a file, and remove what was installed",
        [
            "fabric bootstub uninstall --hosts hosts.txt --directory 192.0.2.1:2181/site",
            "fabric bootstub uninstall --hosts hosts.txt --purge",
        ],
        REMOVED,
    )
    uninstall.add_argument(
        "--directory", metavar="HOSTS", default="", help=f"take them out of this ZooKeeper, too (${DIRECTORY_VARIABLE})"
    )
    uninstall.add_argument("--purge", action="store_true", help="end managents that run, and remove their files too")
    _reaching(uninstall)


def _command(subparsers: Any, name: str, help: str, examples: Sequence[str], more: str) -> Parser:
    parser = bare(subparsers, name, f"{__name__}:{name}", help, examples, more)
    parser.add_argument("--hosts", type=Path, required=True, metavar="FILE", help="the hosts; - reads standard input")
    parser.add_argument("--format", choices=("table", "json"), default=argparse.SUPPRESS, help="default: table")
    return parser


def _reaching(parser: Parser) -> None:
    add = parser.add_argument_group("on the hosts").add_argument
    add("--dir", metavar="DIR", default="", help="(~/.local/share/fabric-bootstub; of root: /var/lib/fabric-bootstub)")
    add("--python", metavar="PATH", default="", help="a Python from 3.11 on (default: one is looked for)")
    add = parser.add_argument_group("ssh").add_argument
    add("--parallel", type=whole(1, MAX_PARALLEL), metavar="N", default=32, help="hosts at once (32)")
    add("--time-limit", type=seconds, metavar="S", default=600.0, help="for one host, in seconds (600)")
    add("--retries", type=whole(0, 20), metavar="N", default=2, help="of a connection that failed (2)")
    add("--connect-timeout", type=whole(1, 600), metavar="S", default=15, help="for one connection, in seconds (15)")
    add("--ssh-config", metavar="FILE", default="", help="instead of ~/.ssh/config")
    add("--ssh-option", type=pair, action="append", default=[], metavar="NAME=VALUE", help="of ssh; may be repeated")


# --- what they do ----------------------------------------------------------------------------------------------------


def install(args: Namespace) -> int:
    from deploy.ssh.host.orders import Order

    directory = _directory(args.directory or os.environ.get(DIRECTORY_VARIABLE, ""))
    key = _key(args, directory)
    order = Order(
        "check" if args.check else "install",
        folder=args.dir,
        domain=_domain(args.domain),
        directory=directory,
        listen=args.listen,
        roots=tuple(args.allow_root),
        more=tuple(args.more),
        python_env=args.python_env,
        key=key,
        restart=args.restart,
        supervisor=args.supervisor,
        answer_s=args.answer_wait,
    )
    bundle = None if args.python_env else _bundle(args.wheels)
    return _run(args, order, bundle)


def uninstall(args: Namespace) -> int:
    from deploy.ssh.host.orders import Order

    directory = _directory(args.directory or os.environ.get(DIRECTORY_VARIABLE, ""))
    return _run(args, Order("remove", folder=args.dir, directory=directory, purge=args.purge), None)


def _run(args: Namespace, order: Order, bundle: Bundle | None) -> int:
    import asyncio
    from dataclasses import replace

    from deploy.cli import installing
    from deploy.cli.running import hush
    from deploy.ssh.command import SshSettings, opening
    from deploy.ssh.fleet import FleetSettings

    hosts = _hosts(args.hosts)
    if shutil.which("ssh") is None:
        raise Failure("expected the program ssh on PATH (Debian: apt-get install openssh-client), found none")
    try:
        first = opening(args.python)
    except ValueError as error:
        raise Failure(f"--python: {error}", Exit.USAGE) from None
    if bundle is not None:
        order = replace(order, bundle=bundle.digest, bundle_bytes=len(bundle.content), offline=bundle.offline)
    ssh = SshSettings(
        config=args.ssh_config,
        options=tuple(f"{name}={value}" for name, value in args.ssh_option),
        connect_s=args.connect_timeout,
    )
    settings = FleetSettings(args.parallel, args.time_limit, args.retries)
    hush()
    outcomes = asyncio.run(installing.visit(hosts, order, first, bundle, settings, ssh))
    installing.show(outcomes, args.format == "json")
    return installing.exit_code(outcomes)


# --- what the arguments name ------------------------------------------------------------------------------------------


def _hosts(file: Path) -> tuple[Host, ...]:
    from deploy.ssh.hosts import BadHosts, parse_hosts

    name = "standard input" if str(file) == "-" else str(file)
    try:
        if str(file) == "-":
            data = sys.stdin.buffer.read(MAX_HOSTS_BYTES + 1)
        else:
            with file.open("rb") as opened:
                data = opened.read(MAX_HOSTS_BYTES + 1)
    except OSError as error:
        raise Failure(f"--hosts: expected a readable file, found {name}: {error.strerror}", Exit.USAGE) from None
    if len(data) > MAX_HOSTS_BYTES:
        raise Failure(f"--hosts: expected at most {MAX_HOSTS_BYTES >> 20} MiB, found more in {name}", Exit.USAGE)
    try:
        return parse_hosts(data.decode("utf-8-sig"), name)
    except UnicodeDecodeError:
        raise Failure(f"--hosts: expected text in UTF-8, found something else in {name}", Exit.USAGE) from None
    except BadHosts as error:
        raise Failure(str(error), Exit.USAGE) from None


def _key(args: Namespace, directory: str) -> str:
    """Checked, as hex digits; "" for none, which only boot stubs that listen on their own host alone may do without."""
    from fabric.config import read_cluster_key
    from fabric.config_values import ConfigError

    heard_at = _listening_hosts(args.listen, directory)
    if args.key_file is not None:
        try:
            return read_cluster_key(args.key_file, "--key-file").hex()
        except ConfigError as error:
            raise Failure(str(error), Exit.USAGE) from None
    for host in heard_at:
        if not host.startswith("127.") and host not in ("::1", "localhost"):
            raise Failure(
                "--key-file: expected the cluster's key, since the boot stubs can be reached from other hosts, found "
                "none; make one: (umask 077; openssl rand -hex 32 > cluster.key)",
                Exit.USAGE,
            )
    return ""


def _listening_hosts(listen: str, directory: str) -> list[str]:
    """The host part of where they listen, or those that tell it."""
    from fabric.config_values import HostPort
    from zk.connect import parse

    if not listen:
        return [host for host, _ in parse(directory).servers] if directory else []
    try:
        return [HostPort().read(listen, True)[0]]
    except ValueError as error:
        raise Failure(f"--listen: expected {HostPort().expected}, found {error}", Exit.USAGE) from None


def _domain(text: str) -> str:
    from deploy.identity import BadIdentity, check_path

    try:
        return check_path(text) if text else ""
    except BadIdentity as error:
        raise Failure(f"--domain: {error}", Exit.USAGE) from None


def _directory(text: str) -> str:
    from zk.connect import parse

    try:
        if text:
            parse(text)
    except ValueError as error:
        raise Failure(f"--directory: {error}", Exit.USAGE) from None
    return text


def _bundle(wheels: Path | None) -> Bundle:
    from deploy.ssh.bundle import BadBundle, make_bundle

    try:
        return make_bundle(wheels)
    except BadBundle as error:
        raise Failure(str(error)) from None
