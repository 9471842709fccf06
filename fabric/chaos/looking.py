"""A look at everything, when the faults are over: ZooKeeper, processes, stores and caches, and the fabric's own audit.

Stores and caches are read whole and hashed, which takes as long as the images are large: only when all else is settled
(`thorough`). The audit asks every node what it has and has reserved, so it also sees what is in their journals.
"""

from __future__ import annotations

from collections.abc import Mapping

import httpx

from fabric.chaos import eye, scan
from fabric.chaos.stage import Stage
from fabric.chaos.watch import CannotLook
from fabric.chaos.world import World

AUDIT_WAIT_S = 90.0
MAX_AUDITED = 20


def look(stage: Stage, published: Mapping[str, Mapping[str, bytes]], thorough: bool) -> World:
    """`published`: digest -> file -> hash (see scan.rotten). Raises CannotLook."""
    watcher = stage.watcher
    present = watcher.ask(lambda client: eye.present(client, watcher.racks))
    written = watcher.ask(eye.written)
    storage = frozenset(node.name for node in stage.nodes if node.layer == "storage")
    here = sorted(storage & set(present.storage))
    digests = {image.digest for image in written.images.values()}
    compute = [node.name for node in stage.nodes if node.layer == "compute"]
    nodes = watcher.nodes
    return World(
        at_s=stage.clock.now(),
        expected={node.name: node.rack for node in stage.nodes},
        storage=storage,
        members={**present.compute, **present.storage},
        leaders={f"{layer} {rack}": node for (layer, rack), node in present.leaders.items()},
        records=written.records,
        unreadable=written.unreadable,
        open=written.open,
        images=written.images,
        running=frozenset(scan.Processes(nodes).look()),
        holders=scan.holders(nodes, here, digests, whole=thorough),
        rotten=tuple(scan.rotten(nodes, compute, published)) if thorough else (),
        lost=written.lost,
        cordoned=written.cordoned,
        audit=tuple(_audit(stage.state.api.where)) if thorough else (),
    )


def _audit(api: str) -> list[str]:
    """What does not fit together, as "KIND SUBJECT at WHERE: DETAIL"."""
    try:
        answer = httpx.get(f"{api}/v1/audit", timeout=AUDIT_WAIT_S, trust_env=False)
        told = answer.raise_for_status().json()
    except (httpx.HTTPError, ValueError) as error:
        raise CannotLook(f"the audit of {api} gave no answer: {error}") from None
    found = [f"{one['kind']} {one['subject']} at {one['where']}: {one['detail']}" for one in told["findings"]]
    return found[:MAX_AUDITED]
