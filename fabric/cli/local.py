"""The sub-commands about a fabric on this machine, and an agent or the API in the foreground, as hosts run them."""

from __future__ import annotations

import argparse
import functools
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabric.cli.exits import Exit, Failure

if TYPE_CHECKING:
    from fabric.config_keys import Key

API_PORT = 8420
BRAKE_WAIT_S = 3.0
DIRECT_KEEPER = "fabric.local.keeper"
"""Starts every process itself. What stands above may give `up` and `demo` another (the namespace's `keeper`)."""
_SETTING = "setting:"
"""Prefix of the namespace's names that hold configuration flags."""


def register(subparsers: Any) -> None:
    """Add up, down, status, demo, agent and api. Nothing heavy is imported before one of them runs."""
    _up(subparsers)
    down = _command(subparsers, "down", _down, "take the fabric on this machine down", ["fabric down"])
    _folder(down)
    status = _command(
        subparsers,
        "status",
        _status,
        "show the processes of the fabric on this machine",
        ["fabric status", "fabric status --format json"],
    )
    _folder(status)
    _format(status)
    demo = _command(
        subparsers,
        "demo",
        _demo,
        "bring a fabric up, deploy 50 Large instances, verify them, take all down",
        ["fabric demo", "fabric demo --format json", "fabric demo --zk 192.0.2.1:2181"],
        "Exit code 0 only if all instances run, seen from outside, and nothing is left behind.",
    )
    demo.add_argument("--zk", metavar="HOSTS", help="use this ensemble ($FABRIC_ZK) instead of a server of its own")
    _format(demo)
    demo.set_defaults(keeper=DIRECT_KEEPER)
    _foreground(subparsers, "agent", _agent, "run one agent in the foreground", "fabric agent --config agent.toml")
    _foreground(subparsers, "api", _api, "run the request API in the foreground", "fabric api --config api.toml")


def _command(
    subparsers: Any, name: str, run: Callable[[Namespace], int], help: str, examples: Sequence[str], more: str = ""
) -> ArgumentParser:
    parser: ArgumentParser = subparsers.add_parser(
        name,
        help=help,
        description=f"{help[0].upper()}{help[1:]}." + (f"\n{more}" if more else ""),
        epilog="\n".join(["examples:", *(f"  {example}" for example in examples)]),
    )
    parser.set_defaults(run=run)
    return parser


def _folder(parser: ArgumentParser) -> None:
    parser.add_argument("--dir", type=Path, metavar="DIR", help="its folder (/tmp/fabric-<uid>/default)")


def _format(parser: ArgumentParser) -> None:
    parser.add_argument("--format", choices=("table", "json"), default=argparse.SUPPRESS, help="default: table")


def number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or not low <= int(text[:18]) <= high:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low} to {high}, found {text!r}")
        return int(text)

    return parse


def _up(subparsers: Any) -> None:
    up = _command(
        subparsers,
        "up",
        _run_up,
        "bring up a fabric of real processes on this machine, to play with, load and break",
        [
            "fabric up",
            "fabric up --racks 2 --compute 4 --storage 1 --detach",
            "fabric up --zookeepers 3    # an ensemble, of which one server may die",
            "fabric up --racks 25 --compute 38 --storage 2 --driver null    # a thousand processes",
        ],
        "Nothing of it outlives `fabric down`, Ctrl-C, or a killed `fabric up`.",
    )
    up.set_defaults(keeper=DIRECT_KEEPER)
    add = up.add_argument
    add("--racks", type=number(1, 200), default=3, metavar="R", help="how many racks (3)")
    add("--compute", type=number(0, 1000), default=8, metavar="C", help="compute agents in each (8)")
    add("--storage", type=number(0, 1000), default=2, metavar="S", help="storage agents in each (2)")
    add("--zk", metavar="HOSTS", help="use this ensemble ($FABRIC_ZK) instead of a server of its own")
    add("--zookeepers", type=number(1, 5), default=1, metavar="N", help="servers of its own: 1, 3 or 5 (1)")
    add(
        "--network",
        choices=("host", "namespaces", "proxy"),
        default="host",
        help="how they reach each other (host); with namespaces (needs root) or proxy it can be cut and slowed",
    )
    add("--detach", action="store_true", help="return when it is up; it stays until `fabric down`")
    add(
        "--agents-per-process",
        type=number(1, 1000),
        default=1,
        metavar="K",
        help="host several in one process (1); above 1 agents are started directly, not deployed as managents",
    )
    add("--driver", choices=("process", "null"), default="process", help="null starts no instance: for load tests")
    add("--api", metavar="HOST:PORT", default=f"127.0.0.1:{API_PORT}", help=f"where it listens (127.0.0.1:{API_PORT})")
    add("--session-timeout", type=float, default=4.0, metavar="S", help="who is silent so long is gone, in seconds (4)")
    add("--restart", action="store_true", help="start agents again that die (else they stay dead, to be seen)")
    add("--faults", action="store_true", help="agents and API offer step hooks, to be broken by tests (fabric chaos)")
    add(
        "--discussion",
        choices=("known", "full"),
        default="known",
        help="whom a request asks: leaders, who know their agents (known), or every agent of every rack (full)",
    )
    add("--vcpus", type=number(1, 65536), default=64, metavar="N", help="what each node declares (64)")
    add("--memory-mib", type=number(1, 1 << 30), default=256 << 10, metavar="N", help="likewise (256 GiB)")
    add("--disk-mib", type=number(0, 1 << 40), default=4 << 20, metavar="N", help="likewise (4 TiB)")
    add("--log-level", choices=("debug", "info", "warning", "error"), default="info", help="of agents and API (info)")
    _folder(up)


def _foreground(subparsers: Any, name: str, run: Callable[[Namespace], int], help: str, example: str) -> None:
    parser = _command(
        subparsers,
        name,
        run,
        help,
        [example, f"fabric {name} --example-config > {name}.toml"],
        "Configured by a TOML file, then the environment (FABRIC_*), then flags.",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="a TOML file ($FABRIC_CONFIG)")
    parser.add_argument("--example-config", action="store_true", help="print an annotated TOML file and leave")
    _when_parsing(parser, lambda: _add_settings(parser, name))


def _when_parsing(parser: ArgumentParser, fill: Callable[[], None]) -> None:
    """Add arguments only when they are about to be needed: reading the table of keys takes as long as all the rest."""
    parse = parser.parse_known_args

    def filled(*positional: Any, **named: Any) -> Any:
        parser.parse_known_args = parse  # type: ignore[method-assign]
        fill()
        return parse(*positional, **named)

    parser.parse_known_args = filled  # type: ignore[method-assign]


def _keys(name: str) -> Sequence[Key]:
    from fabric.config_keys import AGENT_KEYS, API_KEYS

    return AGENT_KEYS if name == "agent" else API_KEYS


def _add_settings(parser: ArgumentParser, name: str) -> None:
    groups = {"": parser.add_argument_group("settings")}
    for key in _keys(name):
        if key.hidden:
            continue
        section = key.path.rpartition(".")[0]
        if section not in groups:
            groups[section] = parser.add_argument_group(f"settings: {section}")
        help = f"{key.help} ({key.variable})".strip().replace("%", "%%")
        groups[section].add_argument(key.flag, dest=_SETTING + key.path, metavar="VALUE", help=help)


# --- what they do ----------------------------------------------------------------------------------------------------


def _told(run: Callable[[Namespace], int]) -> Callable[[Namespace], int]:
    """What is expected to go wrong with a local fabric becomes one line, and perhaps the last lines of a log."""

    @functools.wraps(run)
    def guarded(args: Namespace) -> int:
        from fabric.local.commands import NotRunning
        from fabric.local.control import ControlError
        from fabric.local.folder import FolderError
        from fabric.local.front import UpFailed
        from fabric.local.spec import BadSpec
        from fabric.local.takedown import NotEnded

        try:
            return run(args)
        except BadSpec as error:
            raise Failure(str(error), Exit.USAGE) from None
        except (NotRunning, ControlError, FolderError, UpFailed, NotEnded) as error:
            first, *more = str(error).splitlines()
            raise Failure(first, details=tuple(line.strip() for line in more)) from None

    return guarded


def _given_zk(args: Namespace) -> str:
    import os

    return args.zk or os.environ.get("FABRIC_ZK") or ""


@_told
def _run_up(args: Namespace) -> int:
    from fabric.config_values import HostPort
    from fabric.local import commands
    from fabric.local.spec import BadSpec, make_spec
    from fabric.resources import Resources

    listen = HostPort()
    try:
        host, port = listen.read(args.api, True)
    except ValueError as error:
        raise BadSpec(f"--api: expected {listen.expected}, found {error}") from None
    spec = make_spec(
        folder=args.dir,
        racks=args.racks,
        compute=args.compute,
        storage=args.storage,
        zk=_given_zk(args) if args.zookeepers == 1 else args.zk or "",  # what was typed is before the environment
        zookeepers=args.zookeepers,
        network=args.network,
        driver=args.driver,
        agents_per_process=args.agents_per_process,
        api_host=host,
        api_port=port,
        session_timeout_s=args.session_timeout,
        capacity=Resources(args.vcpus, args.memory_mib, args.disk_mib),
        restart=args.restart,
        log_level=args.log_level,
        faults=args.faults,
        discussion=args.discussion,
    )
    return commands.up(spec, args.detach, args.keeper if spec.agents_per_process == 1 else DIRECT_KEEPER)


def _folder_of(args: Namespace) -> Any:
    from fabric.local.folder import Folder, default_path

    return Folder((args.dir or default_path()).absolute())


@_told
def _down(args: Namespace) -> int:
    from fabric.local import commands

    return commands.down(_folder_of(args))


@_told
def _status(args: Namespace) -> int:
    from fabric.local import commands

    return commands.status(_folder_of(args), args.format == "json", brake_of)


def brake_of(api: str) -> str:
    """Why lost nodes are not replaced now; empty when they are, or when the API does not say."""
    from fabric.cli import views
    from fabric.cli.client import Api

    try:
        with Api(api, BRAKE_WAIT_S) as asked:
            found = asked.get("/v1/brake").read(views.Brake)
    except Failure:
        return ""
    return found.detail if found.on else ""


@_told
def _demo(args: Namespace) -> int:
    from fabric.local import demo

    return demo.run(_given_zk(args), args.format == "json", args.keeper)


def _settings(args: Namespace) -> tuple[Path | None, dict[str, str], dict[str, str]]:
    """File, environment and flags, as fabric.config takes them."""
    import os

    environment = dict(os.environ)
    named = environment.get("FABRIC_CONFIG")
    flags = {
        name.removeprefix(_SETTING): value
        for name, value in vars(args).items()
        if name.startswith(_SETTING) and value is not None
    }
    return args.config or (Path(named) if named else None), environment, flags


def _agent(args: Namespace) -> int:
    if args.example_config:
        return _example("agent", "One agent: fabric agent --config agent.toml")
    from fabric.config import agent_config
    from fabric.config_values import ConfigError

    try:
        config = agent_config(*_settings(args))
    except ConfigError as error:
        raise Failure(str(error)) from None
    from fabric.runtime.process import run_agent

    return run_agent(config)


def _api(args: Namespace) -> int:
    if args.example_config:
        return _example("api", "The request API: fabric api --config api.toml")
    from fabric.config import api_config
    from fabric.config_values import ConfigError

    try:
        config = api_config(*_settings(args))
    except ConfigError as error:
        raise Failure(str(error)) from None
    from fabric.api.main import run_api

    return run_api(config)


def _example(name: str, title: str) -> int:
    from fabric.config_keys import example

    print(example(_keys(name), title), end="")
    return Exit.DONE
