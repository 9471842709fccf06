"""What coordinators say of the records that they write for this process (`messages.RecordNews`).

A cache with an owner (this object) and an invalidation (its age): for `TRUST_S` after a coordinator, or this process
itself, has written a record, who follows it here is told so without reading ZooKeeper. That is a hint and no more: a
message may be lost, and another API process may change the record, so after `TRUST_S` without news a follower reads,
with a watch, as if there were none of this; and whoever writes names the version, so that one that is old by then makes
the write fail.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from fabric.api.reading import Versioned
from fabric.messages import RecordNews, RecordSeen
from fabric.records import BadRecord, Deployment, decode, encode
from zk import paths
from zk.tree import Stat

TRUST_S = 2.0
KEEP_S = 30.0
"""For so long after the last word on a record there may be news of it; it is not trusted meanwhile."""
MOST = 4096
"""Records; of more, those heard of longest ago are forgotten."""

_log = logging.getLogger("fabric.api")


@dataclass(frozen=True, slots=True)
class _Heard:
    found: Versioned[Deployment]
    at: float


class Latest:
    """`changed(path)` is called with the path of a record that a coordinator has written."""

    def __init__(self, changed: Callable[[str], None]) -> None:
        self._changed = changed
        self._heard: OrderedDict[str, _Heard] = OrderedDict()

    def wrote(self, now: float, found: Versioned[Deployment]) -> RecordSeen:
        """This process has; what to tell the coordinator."""
        self._keep(now, found)
        stat = found.stat
        return RecordSeen(
            encode(found.record), stat.version, stat.czxid, stat.mzxid, stat.ctime_ms, stat.mtime_ms
        )

    def tell(self, now: float, news: RecordNews) -> None:
        """Of a record that is followed here, or was a moment ago; others are nothing to us."""
        known = self._heard.get(news.deployment)
        if known is None or news.seen.mzxid <= known.found.stat.mzxid:
            return
        path, seen = paths.deployment(news.deployment), news.seen
        try:
            record = decode(seen.data, Deployment, path)
        except BadRecord as error:
            _log.warning("news from a coordinator: %s", error)
            return
        if record.id != news.deployment:
            _log.warning("news from a coordinator: %s: expected the record of that, found %s's", path, record.id)
            return
        stat = Stat(seen.czxid, seen.mzxid, seen.version, 0, 0, seen.ctime_ms, seen.mtime_ms)
        self._keep(now, Versioned(record, stat))
        self._changed(path)

    def known(self, now: float, deployment: str) -> Versioned[Deployment] | None:
        """The record as it was less than TRUST_S ago, if it was heard of then."""
        heard = self._heard.get(deployment)
        return heard.found if heard is not None and now < heard.at + TRUST_S else None

    def trusted_until(self, deployment: str) -> float:
        """When `known` ends, should nothing more be heard; 0: it has not begun."""
        heard = self._heard.get(deployment)
        return heard.at + TRUST_S if heard is not None else 0.0

    def _keep(self, now: float, found: Versioned[Deployment]) -> None:
        known = self._heard.get(found.record.id)
        if known is not None and known.found.stat.mzxid > found.stat.mzxid:
            return  # a coordinator was quicker with what came after it than ZooKeeper's answer to our own write
        self._heard[found.record.id] = _Heard(found, now)
        self._heard.move_to_end(found.record.id)
        while len(self._heard) > MOST or next(iter(self._heard.values())).at < now - KEEP_S:
            self._heard.popitem(last=False)
