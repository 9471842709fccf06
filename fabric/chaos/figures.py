"""The figures of a run, from its history and what was seen. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from fabric.chaos.stage import Deed
from fabric.chaos.verdict import Finding
from fabric.load.history import NO_ANSWER, Asked
from fabric.load.latency import quantile


class Figures(msgspec.Struct, frozen=True):
    """What `expect` may name. Times in seconds. `requests`: begun; `accepted`; `refused`: 404, 409, 422;
    `tried_again`: attempts that got 503 or nothing; `lost`: requests without an answer in the end; `failed`: that ended
    as failed; `with_room`: creates among these, for which there seems to have been room (room.py); `short`: not at rest
    in the end; `skipped`: not begun. `wait_…`: from the first attempt to the answer; `rest_…`: to the deployment being
    at rest. `instances`: that were ever seen running; `most`: at a time; `doubles` and `orphans`: findings. `faults`:
    done; `not_done`. `redundancy_s`: the longest time that an image had too few holders; `settle_s`: from the end of
    the faults until all was at rest."""

    requests: int = 0
    accepted: int = 0
    refused: int = 0
    tried_again: int = 0
    lost: int = 0
    failed: int = 0
    with_room: int = 0
    short: int = 0
    skipped: int = 0
    wait_p50_s: float = 0.0
    wait_p95_s: float = 0.0
    wait_max_s: float = 0.0
    rest_p50_s: float = 0.0
    rest_p95_s: float = 0.0
    rest_max_s: float = 0.0
    instances: int = 0
    most: int = 0
    doubles: int = 0
    orphans: int = 0
    faults: int = 0
    not_done: int = 0
    redundancy_s: float = 0.0
    settle_s: float = 0.0
    samples: int = 0
    ran_s: float = 0.0


def figures(
    asked: Sequence[Asked], findings: Sequence[Finding], deeds: Sequence[Deed], **seen: float
) -> Figures:
    """`seen`: the figures that come from elsewhere, by name."""
    accepted = [one for one in asked if one.last.accepted]
    ended = [one for one in accepted if one.end is not None and one.end.state]
    waits = [one.waited_s for one in asked if not one.last.again]
    rests = [one.end.at_s - one.sent_s for one in ended if one.end is not None]
    done = [deed for deed in deeds if not deed.skipped]
    counted = Figures(
        requests=len(asked),
        accepted=len(accepted),
        refused=sum(400 <= one.last.status < 500 for one in asked),
        tried_again=sum(attempt.status in (NO_ANSWER, 503) for one in asked for attempt in one.attempts),
        lost=sum(one.last.again for one in asked),
        failed=sum(one.end is not None and one.end.state == "failed" for one in asked),
        short=len(accepted) - len(ended),
        wait_p50_s=quantile(sorted(waits), 0.5),
        wait_p95_s=quantile(sorted(waits), 0.95),
        wait_max_s=max(waits, default=0.0),
        rest_p50_s=quantile(sorted(rests), 0.5),
        rest_p95_s=quantile(sorted(rests), 0.95),
        rest_max_s=max(rests, default=0.0),
        doubles=sum(one.promise == "exactly" and "at once" in one.text for one in findings),
        orphans=sum(one.promise == "orphans" for one in findings),
        faults=len(done),
        not_done=len(deeds) - len(done),
    )
    return msgspec.structs.replace(counted, **seen)


FIGURES = Figures.__struct_fields__
