"""Every limit of the roles, named with its unit. One value for a whole fabric; the defaults suit a rack of 40 nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fabric.records import LayerName
from fabric.resources import Resources


@dataclass(frozen=True, slots=True)
class Settings:
    # membership
    session_timeout_s: float = 10.0
    """An agent that ZooKeeper has not heard of for this long is gone; candidates take over from dead leaders then."""
    heartbeat_interval_s: float = 30.0
    """Agent to rack leader, when there are no news: these are told at once."""
    silent_after_s: float = 75.0
    """A rack leader does not wait for an agent that it has not heard of for so long; nor for one whose connection
    broke, or that left a question without an answer, until it is heard of again."""
    home_wait_s: float = 20.0
    """Before it registers, an agent waits so long for what must not run there any more to be gone."""
    sweep_interval_s: float = 5.0
    """How often a rack leader looks for open deployments without an owner."""
    load_hint_interval_s: float = 5.0
    """A leader rewrites its load hint at most this often."""
    retry_min_s: float = 0.1
    retry_max_s: float = 2.0
    """Back-off of everything that is repeated."""

    # a request
    discussion: Literal["known", "full"] = "known"
    """Whom a search for places asks first (steps 4 and 5). "full": every agent of every rack, as the paper has it.
    "known": as many racks as the request could be spread over, whose leaders answer by what they know of their agents;
    and everybody, as in "full", before it is said that there is no room."""
    discussion_racks: int = 8
    """At least so many are asked, where there are as many."""
    submit_wait_s: float = 1.0
    """For a leader to say that it took a deployment in charge; then another leader is picked."""
    offer_wait_s: float = 1.0
    """For a rack's offers (step 5); who has not answered then is left out."""
    command_wait_s: float = 2.0
    """For a rack's answers to reserve, confirm, cancel, stop."""
    answer_linger_s: float = 0.25
    """An agent's answer to confirm, or to stop, waits so long for the instances to run, or to be gone."""
    hop_margin_s: float = 0.3
    """A rack leader stops waiting this much before the one who waits for it does."""
    reservation_ttl_s: float = 20.0
    """A reservation that is neither confirmed nor repeated by then is given back."""
    place_deadline_s: float = 45.0
    """From the coordinator's claim to a full set of reservations; over it, the request fails with its reason."""
    contention_wait_s: float = 0.15
    """Mean wait before a request that lost to others' reservations asks again."""
    poll_interval_s: float = 1.0
    """How often the coordinator asks nodes that have not reported."""
    find_wait_s: float = 30.0
    """For somebody to hold an image (step 8): more than a holder, or a storage leader, takes to restart."""
    storage_leaders_fresh_s: float = 60.0
    """An agent that was told by ZooKeeper who leads storage racks asks it again after this long, or when one of them
    turns out to lead no more."""
    start_stall_s: float = 60.0
    """Without any progress for this long, a node's ordinals are placed elsewhere."""
    start_deadline_s: float = 900.0
    """From the plan to all ordinals running; over it, the deployment fails."""
    stop_grace_s: float = 5.0
    """Between TERM and KILL."""
    stop_deadline_s: float = 60.0
    """For all of a deployment's ordinals to be gone; what is left then is stopped by its agent's own check."""
    verify_every_s: float = 120.0
    """How often an agent compares what it runs with the deployments' records (half as much jitter either way)."""
    lost_note_s: float = 0.2
    """A member that vanished and is not back after this long is noted as lost."""
    brake_settle_s: float = 0.8
    """From there to the decision to replace it: nodes that vanish together are seen together by then."""
    brake_window_s: float = 60.0
    """Nodes whose replacement was decided this recently still count as vanished together with those lost now."""
    brake_rack_share: float = 0.5
    brake_fabric_share: float = 0.2
    """More of a rack's, or of the fabric's, compute nodes lost at once: nothing is replaced until they are back or an
    operator says so."""
    brake_least: int = 3
    """Fewer lost nodes than this never stop replacement: half of a rack of two is one."""
    brake_interval_s: float = 2.0
    """How often it is looked whether those that vanished are back."""
    keep_lost_s: float = 7 * 86400.0
    """A note of a lost node that never came back is kept for so long."""
    patrol_interval_s: float = 60.0
    """How often a leader reads its share of all records, for what no event has told."""
    orphan_after_s: float = 2.0
    """A rack without a leader for so long is looked after by the leaders of others."""
    repair_interval_s: float = 30.0
    """How often a storage leader compares its share of the images with who holds them, for what no event has told."""
    repair_grace_s: float = 15.0
    """From when a storage leader first saw that an image lacks holders to the first copy: more than an agent takes to
    restart, and than `session_timeout_s`, after which a rack whose leader died answers again."""
    repair_wait_s: float = 600.0
    """For a copy to be whole; then another holder is picked."""
    repair_poll_s: float = 1.0
    """How often a storage leader asks how its copies are."""
    repair_copies: int = 8
    """Copies that one storage leader has under way at a time."""
    repair_copies_a_target: int = 2
    """Of these, to one storage agent."""
    holders_fresh_s: float = 1.0
    """A storage leader tells again who holds an image for so long, instead of asking anew."""
    holders_known_s: float = 600.0
    """After it asked all storage agents who holds an image, it asks those who do alone for so long."""
    max_rounds: int = 12
    """Rounds of placing again what another request took first, before the racks are asked anew."""
    max_coordinated: int = 256
    """Deployments that one leader coordinates at a time; one more is refused, and another leader is picked."""

    # bookkeeping
    keep_final: int = 1000
    """Final (failed, deleted) deployment records kept, at most."""
    keep_final_s: float = 7 * 86400.0
    leftovers_every_s: float = 900.0
    """How often a storage agent looks for what it holds for no image any more."""
    leftovers_after_s: float = 60.0
    """What it noted then and no image record names after this long is freed."""
    redundancy: int = 2
    """Holders of every image."""
    max_restart_backoff_s: float = 60.0
    """Between restarts of an instance that keeps exiting: 0.5 s, doubled each time, up to this."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who an agent is. `guid` is new at every start of the process; `previous` are the guids that its journal knows.
    `total`: what the node offers to instances (host reserve taken off, overcommit applied). `managent`: its path, when
    it was deployed as one."""

    node: str
    rack: str
    layer: LayerName
    guid: str
    address: str
    total: Resources
    driver: str
    host: str
    pid: int
    data_endpoint: str = ""
    previous: tuple[str, ...] = ()
    managent: str = ""
