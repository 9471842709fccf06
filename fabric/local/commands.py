"""`fabric up`, `fabric down`, `fabric status`: what they do and say. Errors are exceptions; fabric/cli/local.py turns
them into a line and an exit code."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from fabric.local.control import ControlClient, ControlError
from fabric.local.display import Stages, say
from fabric.local.folder import Folder, default_path
from fabric.local.front import Front, UpFailed, leftovers, take_down
from fabric.local.interrupts import Interrupted, Interrupts
from fabric.local.state import LocalSpec, LocalState, Service, ZooKeeper

OUTPUT_WIDTH = 200
COLOURS = {"registered": "green", "dead": "red"}


class NotRunning(Exception):
    """There is no local fabric to tell of."""


def up(spec: LocalSpec, detach: bool, keeper_module: str) -> int:
    """Bring it up; stay until Ctrl-C (exit code 130), `fabric down` (0), or its end by accident. Raises UpFailed,
    FolderError, NotEnded."""
    front = Front(spec, keeper_module)
    with Interrupts() as interrupts:
        try:
            front.start()
            with Stages() as stages:
                state = front.wait_up(stages.report, interrupts)
            _welcome(state, detach)
            if detach:
                front.detach()
                return 0
            front.wait_end(interrupts)
            if front.ended_well():
                say("taken down")
                return 0
            raise UpFailed(front.why())
        except Interrupted as interrupted:
            say("taking down …")
            began = time.monotonic()
            front.stop()
            say(f"down after {time.monotonic() - began:.1f} s: no process and no file is left")
            return interrupted.code
        finally:
            front.stop()


def _welcome(state: LocalState, detach: bool) -> None:
    spec = state.spec
    took = (state.marks_ms["up"] - state.marks_ms["zookeeper_started"]) / 1000
    say(f"up after {took:.1f} s: {spec.racks} racks, each {spec.compute} compute and {spec.storage} storage agents")
    say(f"  API        {state.api.where}   (documentation: {state.api.where}/docs)")
    say(f"  ZooKeeper  {state.zookeeper.where}")
    say(f"  folder     {state.folder}   (logs/ and nodes/ in it)")
    if spec.driver == "null":
        say("  driver     null: instances are not really started")
    given = "" if Path(state.folder) == default_path() else f" --dir {state.folder}"
    if state.companions:
        say(f"  managents  fabric managent status{given}   (also plan, apply, explain: agents are deployed as such)")
    say(f"it stays until: fabric down{given}" if detach else "Ctrl-C takes it down")


def down(folder: Folder) -> int:
    """Raises NotEnded, FolderError, ControlError."""
    began = time.monotonic()
    if take_down(folder):
        say(f"down after {time.monotonic() - began:.1f} s: no process and no file is left")
    else:
        say(f"no local fabric runs in {folder.path}: nothing to do")
    return 0


def status(folder: Folder, as_json: bool, brake: Callable[[str], str]) -> int:
    """`brake`: asks the API at this URL why lost nodes are not replaced, "" when they are. Raises NotRunning,
    ControlError."""
    try:
        state = ControlClient(folder).status()
    except ControlError as error:
        if not error.gone:
            raise
        if leftovers(folder):
            raise NotRunning(
                f"the fabric in {folder.path} was killed and left its files: `fabric down` removes them"
            ) from None
        raise NotRunning(f"no local fabric runs in {folder.path}: `fabric up` starts one") from None
    why = brake(state.api.where) if state.api.ready else ""
    if as_json:
        sys.stdout.write(json.dumps({**as_told(state), "brake": why}, indent=2) + "\n")
    else:
        _show(state)
        if why:
            Console(highlight=False).print(why, style="red", soft_wrap=True)
    return 0


def as_told(state: LocalState) -> dict[str, object]:
    """The state as JSON, with what is computed from it."""
    told: dict[str, object] = msgspec.to_builtins(state)
    told |= {
        "registered": state.registered,
        "leaders_elected": state.leaders_elected,
        "leaders_wanted": state.leaders_wanted,
    }
    return told


def _show(state: LocalState) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else OUTPUT_WIDTH)
    total = len(state.nodes)
    console.print(
        f"{state.phase}: {state.registered} of {total} agents registered, "
        f"{state.leaders_elected} of {state.leaders_wanted} leaders elected; {state.folder}"
    )
    console.print(f"API        {_service(state.api)}")
    console.print(f"ZooKeeper  {_service(state.zookeeper)}")
    for name, server in state.zookeepers.items():
        console.print(f"  {name:<13}{_server(server)}")
    for name, companion in state.companions.items():
        console.print(f"{name:<10} {_service(companion)}")
    if state.spec.network != "host":
        console.print(f"network    {state.spec.network}, {'; '.join(map(str, state.rules)) or 'nothing wrong with it'}")
    leaders = {node for by_rack in state.leaders.values() for node in by_rack.values()}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("NODE", "RACK", "LAYER", "STATE", "PID", "LEADS", "ENDED"):
        table.add_column(heading, justify="right" if heading == "PID" else "left")
    for view in state.nodes:
        table.add_row(
            view.node.name,
            view.node.rack,
            view.node.layer,
            f"[{COLOURS.get(view.state, 'yellow')}]{view.state}[/]",
            str(view.process.pid) if view.process and not view.ended else "-",
            "yes" if view.node.name in leaders else "",
            view.ended,
        )
    console.print(table)


def _server(server: ZooKeeper) -> str:
    """One of ZooKeeper's servers: where, what it is or why it is nothing, and its pid."""
    is_now = server.ended or ("paused" if server.paused else server.mode or "does not serve")
    if server.disk_delay_ms:
        is_now += f", its disk slowed down by {server.disk_delay_ms} ms"
    return f"{server.where} ({is_now}" + (f", pid {server.process.pid})" if server.process else ")")


def _service(service: Service) -> str:
    pid = f", pid {service.process.pid}" if service.process and not service.ended else ""
    return f"{service.where} ({service.ended or ('ready' if service.ready else 'not ready')}{pid})".lstrip()
