"""Following a deployment until it is at rest.

The record is long-polled by its index, so that every change is seen at once and nothing is asked in vain. The record
does not change while instances start one after the other: then the nodes are asked about once a second how many run,
where that fits one page. An API that goes away is waited for a while: the deployment does not depend on it.

A deployment at rest may have instances on nodes that are lost: its record does not change before these are to be
replaced. Who wishes is told when they are, too, unless the brake is on: who knows for how long.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from fabric.cli import views
from fabric.cli.client import PAGE, Answer, Api, NoAnswer, segment
from fabric.cli.exits import Exit, Failure
from fabric.cli.output import Progress, counted, remark
from fabric.roles.trace import Trace

POLL_S = 10.0
"""One long-poll, while nothing but the record tells of progress."""
STARTING_POLL_S = 1.0
API_AWAY_S = 20.0
RETRY_S = 0.5
NAMES_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Seen:
    """A deployment as it was when it was last looked at; `answer` is what the API said."""

    deployment: views.Deployment
    answer: Answer


def read(answer: Answer) -> Seen:
    return Seen(answer.read(views.Deployment), answer)


@dataclass(frozen=True, slots=True)
class Count:
    """Of its instances, as the nodes said last: how many run, and how many wait for the image."""

    running: int = 0
    fetching: int = 0


def look(api: Api, deployment_id: str) -> Seen:
    return read(api.get(f"/v1/deployments/{segment(deployment_id)}"))


def follow(api: Api, seen: Seen, timeout_s: float, replaced: bool = False) -> Seen:
    """Show progress until the deployment is at rest; `replaced`: and what was on lost nodes is replaced, if the brake
    is off. Raises Failure after `timeout_s`; Ctrl-C goes through."""
    deadline = time.monotonic() + timeout_s
    count = Count()
    identity = seen.deployment.id
    try:
        with Progress() as progress:
            while True:
                deployment = seen.deployment
                gone = missed(api, deployment) if deployment.final and replaced else Missed()
                if deployment.final and (gone.brake or not gone.count):
                    return seen
                text = f"{identity} {deployment.state}: {gone}" if gone.count else sentence(deployment, count)
                progress.show(text, count.running, deployment.count)
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    so = f"has {gone}" if gone.count else f"is {deployment.state}"
                    raise Failure(
                        f"{identity} {so} after {timeout_s:g} s, expected it at rest by then; "
                        f"it goes on: fabric show {identity} --wait"
                    )
                starting = deployment.state in ("starting", "running")
                wait_s = min(STARTING_POLL_S if starting else POLL_S, left_s)
                seen = _change(api, seen, wait_s, deadline)
                if seen.deployment.state == "starting" and seen.deployment.count <= PAGE:
                    count = _count(api, identity, count)
    except KeyboardInterrupt:
        remark(f"stopped watching; {identity} goes on: fabric show {identity} --wait")
        raise


@dataclass(frozen=True, slots=True)
class Missed:
    """Instances of a plan that are on nodes which are lost; `brake`: why these are not replaced now, or nothing."""

    count: int = 0
    nodes: tuple[str, ...] = ()
    brake: str = ""

    def __str__(self) -> str:
        shown = self.nodes[:NAMES_SHOWN]
        more = f" and {len(self.nodes) - len(shown)} more" if len(self.nodes) > len(shown) else ""
        where = "a lost node" if len(self.nodes) == 1 else "lost nodes"
        return f"{counted(self.count, 'instance')} on {where}: {', '.join(shown)}{more}"


def missed(api: Api, deployment: views.Deployment) -> Missed:
    """An API that can't say knows of none."""
    try:
        brake = api.get("/v1/brake").read(views.Brake)
    except Failure:
        return Missed()
    lost = {one.node for one in brake.lost}
    shares = [share for share in deployment.plan if share.node in lost]
    nodes = tuple(share.node for share in shares)
    return Missed(sum(share.count for share in shares), nodes, brake.detail if brake.on else "")


def verdict(api: Api, deployment: views.Deployment, wanted: int | None = None) -> Exit:
    """The exit code that a deployment at rest stands for. `wanted`: the count that this command asked for; a change
    that could not be made leaves the deployment as it was, running with its old count."""
    if deployment.state == "deleted":
        return Exit.DONE if wanted is None else Exit.ERROR
    if deployment.state == "failed":
        return Exit.ERROR if _started(api, deployment.id) else Exit.NOT_PLACED
    return Exit.NOT_PLACED if deployment.placed < (wanted or deployment.count) else Exit.DONE


def _started(api: Api, deployment_id: str) -> bool:
    """Whether a failed deployment had been placed, and it was its instances that could not be brought to run."""
    try:
        runs = api.get(f"/v1/deployments/{segment(deployment_id)}/trace").read(Trace).runs
    except Failure:
        return False
    return bool(runs) and any(node.failed for node in runs[-1].nodes)


def sentence(deployment: views.Deployment, count: Count) -> str:
    about = f"{deployment.id} {deployment.state}"
    if deployment.gone and deployment.state not in ("deleting", "deleted"):
        return f"{deployment.id} is to be deleted"
    match deployment.state:
        case "starting":
            fetching = f", {count.fetching} wait for the image" if count.fetching else ""
            return f"{about}: {count.running} of {deployment.placed} run{fetching}, on {len(deployment.plan)} nodes"
        case "running":
            return f"{about}: {deployment.placed} of {deployment.count}, on {len(deployment.plan)} nodes"
        case _:
            return f"{about}: {deployment.reason}" if deployment.reason else about


def _change(api: Api, seen: Seen, wait_s: float, deadline: float) -> Seen:
    """The record when it has changed, or after `wait_s`."""
    away_until = min(deadline, time.monotonic() + API_AWAY_S)
    told = False
    while True:
        try:
            path = f"/v1/deployments/{segment(seen.deployment.id)}"
            return read(api.get(path, {"wait": f"{int(wait_s * 1000)}ms", "index": seen.deployment.index}))
        except NoAnswer as failure:
            if time.monotonic() + RETRY_S > away_until:
                raise
            if not told:
                remark(f"{failure}; trying again")
                told = True
            time.sleep(RETRY_S)


def _count(api: Api, deployment_id: str, before: Count) -> Count:
    """Only for show: an API that cannot tell now keeps what was seen before."""
    try:
        page = api.get("/v1/instances", {"deployment": deployment_id, "limit": PAGE}).read(views.Page[views.Instance])
    except Failure:
        return before
    states = [instance.state for instance in page.items]
    return Count(states.count("running"), states.count("fetching"))
