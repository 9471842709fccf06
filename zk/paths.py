"""Every znode path, in one table. All are below the chroot of the connect string, if it has one.

    /members/{layer}/{rack}/{node}                 ephemeral   who is here (MemberRecord)
    /nodes/{node}                                  ephemeral   the same record: a node id is one agent's, in all racks
    /candidates/{layer}/{rack}/{guid}-{sequence}   ephemeral   who stands for rack leader
    /leaders/{layer}/{rack}                        ephemeral   who leads (LeaderRecord); its czxid is the leader's epoch
    /deployments/{id}                              persistent  one small record a deployment
    /deployments/{id}/trace                        persistent  its trace, packed and bounded
    /open/{id}                                     persistent  marker: this deployment needs a coordinator
    /open/{id}/owner                               ephemeral   who coordinates it now
    /keys/{digest}                                 persistent  Idempotency-Key -> deployment id
    /keys/drop-{digest}                            ephemeral   the fence of a content that is about to be dropped
    /images/{name}                                 persistent  one record an image
    /cordons/{node}                                persistent  this node gets nothing new
    /drains/{node}                                 persistent  what runs on this node is to run elsewhere
    /lost/{node}                                   persistent  this node vanished: since when, is it replaced
    /stubs/{shard}/{name}                          persistent  a boot stub (StubRecord of deploy.records)
    /managents/{shard}/{key}                       persistent  the children of one initiator (Table of deploy.records)
    /managents/{shard}/{key}/{page}                persistent  more of them, where they are many
    /top                                           ephemeral   who brings about a description now (TopRecord)

Stubs and managents are spread over SHARDS shards by a hash of the name, so that none of them, nor any list of children,
grows past ZooKeeper's manners at 100,000 entries (deploy.directory has the sizes). `key` is the initiator's path with
":" for "/", and TOP_KEY for the top, whose path is empty. Roots and shards are made when each is first needed: a fabric
that is not deployed by initiators has none.
"""

from __future__ import annotations

import hashlib
from typing import Literal

Layer = Literal["compute", "storage"]
LAYERS: tuple[Layer, ...] = ("compute", "storage")

MEMBERS = "/members"
NODES = "/nodes"
CANDIDATES = "/candidates"
LEADERS = "/leaders"
DEPLOYMENTS = "/deployments"
OPEN = "/open"
KEYS = "/keys"
IMAGES = "/images"
CORDONS = "/cordons"
DRAINS = "/drains"
LOST = "/lost"
STUBS = "/stubs"
MANAGENTS = "/managents"
TOP = "/top"

SHARDS = 256
"""They must not change while there is anything in them."""
TOP_KEY = "top"
"""No path gives it: those begin with ":"."""

ROOTS: tuple[str, ...] = (
    *(f"{top}/{layer}" for top in (MEMBERS, CANDIDATES, LEADERS) for layer in LAYERS),
    NODES,
    DEPLOYMENTS,
    OPEN,
    KEYS,
    IMAGES,
    CORDONS,
    DRAINS,
    LOST,
)
"""The persistent znodes that any process makes when it finds them missing."""


def rack_members(layer: Layer, rack: str) -> str:
    return f"{MEMBERS}/{layer}/{rack}"


def member(layer: Layer, rack: str, node: str) -> str:
    return f"{MEMBERS}/{layer}/{rack}/{node}"


def node(name: str) -> str:
    return f"{NODES}/{name}"


def candidates(layer: Layer, rack: str) -> str:
    return f"{CANDIDATES}/{layer}/{rack}"


def candidate_prefix(layer: Layer, rack: str, guid: str) -> str:
    """Created with `sequence`, so that a lost reply can be found again by its guid."""
    return f"{CANDIDATES}/{layer}/{rack}/{guid}-"


def leaders(layer: Layer) -> str:
    return f"{LEADERS}/{layer}"


def leader(layer: Layer, rack: str) -> str:
    return f"{LEADERS}/{layer}/{rack}"


def deployment(deployment_id: str) -> str:
    return f"{DEPLOYMENTS}/{deployment_id}"


def trace(deployment_id: str) -> str:
    return f"{DEPLOYMENTS}/{deployment_id}/trace"


def open_marker(deployment_id: str) -> str:
    return f"{OPEN}/{deployment_id}"


def owner(deployment_id: str) -> str:
    return f"{OPEN}/{deployment_id}/owner"


def key(digest: str) -> str:
    return f"{KEYS}/{digest}"


def drop_fence(digest_hex: str) -> str:
    """Held from before a content's references are looked for until it is dropped: see `fabric.api.contents`."""
    return key(f"drop-{digest_hex}")


def image(name: str) -> str:
    return f"{IMAGES}/{name}"


def cordon(node: str) -> str:
    return f"{CORDONS}/{node}"


def drain(node: str) -> str:
    return f"{DRAINS}/{node}"


def lost(node: str) -> str:
    return f"{LOST}/{node}"


def shard(text: str) -> str:
    """Which of the SHARDS `text` belongs to: the same in every process, now and later."""
    return hashlib.blake2b(text.encode(), digest_size=1).hexdigest()


def stub(name: str) -> str:
    return f"{STUBS}/{shard(name)}/{name}"


def table(managent: str) -> str:
    """Of the initiator at this path; "" is the top."""
    key = managent.replace("/", ":") or TOP_KEY
    return f"{MANAGENTS}/{shard(key)}/{key}"


def table_page(managent: str, number: int) -> str:
    return f"{table(managent)}/{number:03d}"
