"""drain: begin it, and watch until the node is empty.

A drain belongs to the fabric, not to this command: it is written down, and leaders carry it out. So watching may end
and begin again at any time; a drain that runs keeps its deadline unless another is given. When the node is empty, what
was stopped before it started elsewhere may still be on its way: so each deployment is followed until it is at rest, and
what had to be stopped without another place is told by those that lack more ordinals then than when first seen here.
"""

from __future__ import annotations

import time
from argparse import Namespace
from dataclasses import dataclass, field

from fabric.cli import output, views
from fabric.cli.client import Answer, Api, Missing, NoAnswer, segment
from fabric.cli.exits import Exit, Failure

POLL_S = 1.0
API_AWAY_S = 60.0
REST_S = 60.0
"""For the deployments to be at rest when the node is empty; those that are not by then are judged as they are."""
ROWS = 40


@dataclass(slots=True)
class _Watched:
    """`first`: what each deployment lacked when it was first seen; `most`: the most instances that were left;
    `give_up`: when --timeout is over."""

    first: dict[str, int] = field(default_factory=dict)
    most: int = 0
    give_up: float | None = None

    def note(self, drain: views.Drain) -> None:
        self.most = max(self.most, drain.left)
        for one in drain.deployments:
            self.first.setdefault(one.id, one.lacking)


def drain(args: Namespace) -> int:
    path = f"/v1/nodes/{segment(args.node)}/drain"
    with Api.of(args) as api:
        answer = _begin(api, path, args.deadline)
        begun = answer.read(views.Drain)
        if not args.monitor:
            _told(args, answer, begun)
            return Exit.DONE
        watched = _Watched(give_up=time.monotonic() + args.timeout if args.timeout else None)
        watched.note(begun)
        try:
            with output.Progress() as progress:
                answer = _watch(api, path, args, answer, watched, progress)
                short = _short(api, args.node, watched, progress)
        except KeyboardInterrupt:
            output.remark(
                f"stopped watching; {args.node} is drained on: fabric drain {args.node} --monitor "
                f"(to end it: fabric uncordon {args.node})"
            )
            raise
    if output.wants_json(args):
        output.emit(answer)
    else:
        output.line(f"{args.node} is empty; it gets nothing new until: fabric uncordon {args.node}")
        for one in short:
            why = f": {one.reason}" if one.reason else ""
            output.line(f"{one.id} ({one.name}) lacks {one.lacking} of {one.count}{why}", "yellow")
            for reason in one.reasons:
                output.line(f"  {reason}")
    return Exit.NOT_PLACED if short else Exit.DONE


def _begin(api: Api, path: str, deadline_s: int | None) -> Answer:
    """A drain that runs already is only begun anew to have another deadline."""
    if deadline_s is not None:
        return api.post(path, body={"deadline_s": deadline_s})
    try:
        return api.get(path)
    except Missing:
        return api.post(path, body={})


def _told(args: Namespace, answer: Answer, begun: views.Drain) -> None:
    if output.wants_json(args):
        output.emit(answer)
        return
    if begun.done:
        output.line(f"{begun.node} gets nothing new, and nothing is left on it")
        return
    what = f"{_instances(begun.left)} of {output.counted(len(begun.deployments), 'deployment')}"
    output.line(f"{begun.node} is being drained: {what} to move elsewhere")
    output.line(f"what finds no other place by {begun.deadline} (in {output.until(begun.deadline)}) is stopped")
    output.table(
        ("DEPLOYMENT", "NAME", "STATE", ">STAYING", ">LEAVING", "HOW", "REASON"),
        [
            (
                one.id,
                one.name,
                output.state(one.state),
                one.staying,
                one.leaving + one.stopping,
                "stops first" if one.exclusive else "starts elsewhere first",
                one.reason,
            )
            for one in begun.deployments[:ROWS]
        ],
    )
    output.remark(f"watch it: fabric drain {begun.node} --monitor; end it: fabric uncordon {begun.node}")


def _watch(
    api: Api, path: str, args: Namespace, answer: Answer, watched: _Watched, progress: output.Progress
) -> Answer:
    """Until the node is empty. Raises Failure after --timeout, or when somebody ends the drain."""
    away_until: float | None = None
    while True:
        drain = answer.read(views.Drain)
        watched.note(drain)
        if drain.done:
            return answer
        progress.show(_sentence(drain), watched.most - drain.left, watched.most)
        now = time.monotonic()
        if watched.give_up is not None and now + POLL_S > watched.give_up:
            raise Failure(
                f"{drain.node} has {_instances(drain.left)} after {args.timeout:g} s, expected none by then; "
                f"it is drained on: fabric drain {drain.node} --monitor"
            )
        time.sleep(POLL_S)
        try:
            answer = api.get(path)
            away_until = None
        except Missing:
            raise Failure(f"{drain.node} is not drained any more: somebody has uncordoned it") from None
        except NoAnswer as failure:
            if away_until is None:
                output.remark(f"{failure}; trying again")
                away_until = now + API_AWAY_S
            if now > away_until:
                raise


def _short(api: Api, node: str, watched: _Watched, progress: output.Progress) -> list[views.Deployment]:
    """Deployments of which something was stopped without another place, each looked at when it is at rest."""
    until = min(time.monotonic() + REST_S, watched.give_up or float("inf"))
    found: list[views.Deployment] = []
    for identity, lacked in sorted(watched.first.items()):
        try:
            one = _look(api, identity)
            while not one.final and time.monotonic() + POLL_S <= until:
                progress.show(f"{node} is empty; {one.id} ({one.name}) is {one.state}")
                time.sleep(POLL_S)
                one = _look(api, identity)
        except Missing:
            continue  # forgotten: nobody misses it
        if one.lacking > lacked and not one.gone:
            found.append(one)
    return found


def _look(api: Api, identity: str) -> views.Deployment:
    return api.get(f"/v1/deployments/{segment(identity)}").read(views.Deployment)


def _sentence(drain: views.Drain) -> str:
    staying = sum(one.staying for one in drain.deployments)
    leaving = sum(one.leaving for one in drain.deployments)
    stopping = sum(one.stopping for one in drain.deployments)
    parts = [
        f"{staying} wait for another place" if staying else "",
        f"{leaving} start elsewhere, or run there" if leaving else "",
        f"{stopping} are being stopped" if stopping else "",
    ]
    late = "; the deadline has passed, what has no place is stopped" if drain.overdue else ""
    return f"{drain.node}: {_instances(drain.left)} left ({', '.join(filter(None, parts))}){late}"


def _instances(count: int) -> str:
    return output.counted(count, "instance")
