"""Following a deployment until it is at rest.

The record is long-polled by its index, so that every change is seen at once and nothing is asked in vain. The record
does not change while instances start one after the other: then the nodes are asked about once a second how many run,
where that fits one page. An API that goes away is waited for a while: the deployment does not depend on it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from fabric.cli import views
from fabric.cli.client import PAGE, Answer, Api, NoAnswer, segment
from fabric.cli.exits import Exit, Failure
from fabric.cli.output import Progress, remark

POLL_S = 10
"""One long-poll, while nothing but the record tells of progress."""
STARTING_POLL_S = 1
API_AWAY_S = 20.0
RETRY_S = 0.5


@dataclass(frozen=True, slots=True)
class Seen:
    """A deployment as it was when it was last looked at; `answer` is what the API said."""

    deployment: views.Deployment
    answer: Answer


def read(answer: Answer) -> Seen:
    return Seen(answer.read(views.Deployment), answer)


def look(api: Api, deployment_id: str) -> Seen:
    return read(api.get(f"/v1/deployments/{segment(deployment_id)}"))


def follow(api: Api, seen: Seen, timeout_s: float) -> Seen:
    """Show progress until the deployment is at rest. Raises Failure after `timeout_s`; Ctrl-C goes through."""
    deadline = time.monotonic() + timeout_s
    running = 0
    identity = seen.deployment.id
    try:
        with Progress() as progress:
            while True:
                deployment = seen.deployment
                running = deployment.placed if deployment.state == "running" else running
                if deployment.final:
                    return seen
                progress.show(sentence(deployment, running), running, deployment.count)
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise Failure(
                        f"{identity} is {deployment.state} after {timeout_s:g} s, expected it at rest by then; "
                        f"it goes on: fabric show {identity} --wait"
                    )
                starting = deployment.state in ("starting", "running")
                wait_s = max(1, min(STARTING_POLL_S if starting else POLL_S, int(left_s)))
                seen = _change(api, seen, wait_s, deadline)
                if seen.deployment.state == "starting" and seen.deployment.count <= PAGE:
                    running = _running(api, identity, running)
    except KeyboardInterrupt:
        remark(f"stopped watching; {identity} goes on: fabric show {identity} --wait")
        raise


def verdict(deployment: views.Deployment) -> Exit:
    """The exit code that a deployment at rest stands for."""
    if deployment.state == "deleted":
        return Exit.DONE
    if deployment.placed < deployment.count:
        return Exit.NOT_PLACED
    return Exit.DONE if deployment.state == "running" else Exit.ERROR


def sentence(deployment: views.Deployment, running: int) -> str:
    about = f"{deployment.id} {deployment.state}"
    if deployment.gone and deployment.state not in ("deleting", "deleted"):
        return f"{deployment.id} is to be deleted"
    match deployment.state:
        case "starting":
            return f"{about}: {running} of {deployment.placed} run, on {len(deployment.plan)} nodes"
        case "running":
            return f"{about}: {deployment.placed} of {deployment.count}, on {len(deployment.plan)} nodes"
        case _:
            return f"{about}: {deployment.reason}" if deployment.reason else about


def _change(api: Api, seen: Seen, wait_s: int, deadline: float) -> Seen:
    """The record when it has changed, or after `wait_s`."""
    away_until = min(deadline, time.monotonic() + API_AWAY_S)
    told = False
    while True:
        try:
            path = f"/v1/deployments/{segment(seen.deployment.id)}"
            return read(api.get(path, {"wait": f"{wait_s}s", "index": seen.deployment.index}))
        except NoAnswer as failure:
            if time.monotonic() + RETRY_S > away_until:
                raise
            if not told:
                remark(f"{failure}; trying again")
                told = True
            time.sleep(RETRY_S)


def _running(api: Api, deployment_id: str, before: int) -> int:
    """How many of its instances run now. Only for show: an API that cannot tell now keeps what was seen before."""
    try:
        page = api.get("/v1/instances", {"deployment": deployment_id, "limit": PAGE}).read(views.Page[views.Instance])
    except Failure:
        return before
    return sum(instance.state == "running" for instance in page.items)
