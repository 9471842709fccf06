"""Redundancy comes back within a bound, whatever was lost, and nothing is copied that need not be. Real roles."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from fabric import effects as fx
from fabric.messages import HoldersChanged, RackStatus, RackStatusCall
from fabric.records import Image, encode
from fabric.roles.repair import SOON_S
from fabric.wire import Codec
from tests.unit.roles.world import Host, World
from zk import paths
from zk import tree as zt

WEB = "b3:" + "11" * 32
LOST_S = 4.0
"""World's session timeout: from a crash to the end of the session."""
ROUNDS_S = 4 * 1.5 * SOON_S


def digests(count: int) -> list[str]:
    return [f"b3:{number:064x}" for number in range(1, count + 1)]


def fabric(racks: int = 3, storage: int = 1, **limits: float) -> World:
    """Storage racks alone, whose stores are empty."""
    world = World(racks=0)
    world.settings = replace(world.settings, **limits)
    for rack in range(1, racks + 1):
        for index in range(1, storage + 1):
            world.boot(f"r{rack}s{index:02d}", f"r{rack}", "storage")
    for host in world.hosts.values():
        host.held.clear()
        world.tell_store(host)
    world.run(lambda: len(world.tree.children("/leaders/storage")) == racks, what="all racks led")
    world.pass_time(1.5)
    return world


def pushed(world: World, digest: str, *nodes: str, name: str = "", size: int = 1000) -> None:
    record = Image(name or f"i-{digest[-8:]}", digest, size, "tar", nodes, 0)
    for node in nodes:
        world.hosts[node].held.add(digest)
        world.tell_store(world.hosts[node])
    world.tree.apply(0, zt.Create(paths.image(record.name), encode(record)))


def holders(world: World, digest: str) -> list[str]:
    return sorted(node for node, host in world.hosts.items() if host.alive and digest in host.held)


def redundant(world: World, *wanted: str) -> bool:
    """By the truth: two living holders, in different racks."""
    return all(len({node[:2] for node in holders(world, digest)}) >= 2 for digest in wanted)


def copy_s(world: World) -> float:
    return world.settings.repair_grace_s + ROUNDS_S


def storage_leader(world: World, rack: str) -> Host:
    return next(h for h in world.hosts.values() if h.alive and h.agent.leads and h.identity.rack == rack)


def test_a_holder_that_died_for_good_is_replaced_in_another_rack_within_the_bound():
    world = fabric(racks=3)
    pushed(world, WEB, "r1s01", "r2s01")
    world.pass_time(world.settings.repair_interval_s * 2)
    assert world.fetched == [], "nothing was lost"
    world.crash("r1s01")
    took = world.run(lambda: redundant(world, WEB), LOST_S + copy_s(world), "two holders again")
    assert world.fetched == [("r3s01", WEB)]
    assert took > world.settings.repair_grace_s, "a holder that restarts must not cost a copy"
    world.pass_time(world.settings.repair_interval_s * 2)
    assert len(world.fetched) == 1


def test_a_holder_that_is_back_in_time_costs_no_copy():
    world = fabric(racks=3)
    pushed(world, WEB, "r1s01", "r2s01")
    world.pass_time(5)
    world.crash("r1s01")
    world.pass_time(LOST_S + world.settings.repair_grace_s - 2)
    world.boot("r1s01", "r1", "storage")
    world.pass_time(60)
    assert world.fetched == []


def test_a_holder_that_comes_back_late_is_let_be():
    world = fabric(racks=3)
    pushed(world, WEB, "r1s01", "r2s01")
    world.crash("r1s01")
    world.run(lambda: redundant(world, WEB), 60, "two holders again")
    world.boot("r1s01", "r1", "storage")
    world.pass_time(90)
    assert holders(world, WEB) == ["r1s01", "r2s01", "r3s01"]
    assert len(world.fetched) == 1
    assert world.dropped == []


def test_with_many_images_all_leaders_repair_their_share_boundedly():
    world = fabric(racks=4, storage=2, repair_copies=3, repair_copies_a_target=1)
    many = digests(40)
    for digest in many:
        pushed(world, digest, "r1s01", "r2s01")
    for host in world.hosts.values():
        world.fetch_s[host.identity.node] = 0.5
    at_once: list[int] = []

    def done() -> bool:
        at_once.append(max(len(h.agent._storage_leading.repair._copies) for h in world.hosts.values()))
        return redundant(world, *many)

    world.crash("r1s01")
    world.run(done, LOST_S + copy_s(world) + 40, "all redundant")
    assert max(at_once) == 3
    assert len(world.fetched) == len(many), "each once"
    targets = {node for node, _ in world.fetched}
    assert len(targets) >= 4, f"spread over {targets}"
    assert not {node for node in targets if node.startswith("r2")}, "never beside the other copy"


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("after_s", [0.5, 3.0])
def test_a_leader_that_dies_in_the_middle_of_a_copy_is_taken_over(number: int, after_s: float):
    """Whose share it is now finds the copy under way and follows it."""
    web = digests(4)[number]
    world = fabric(racks=3, storage=3)
    pushed(world, web, "r1s01", "r2s01")
    for host in world.hosts.values():
        world.fetch_s[host.identity.node] = 6.0
    world.crash("r1s01")
    world.run(lambda: bool(world.fetched), 60, "a copy has begun")
    world.pass_time(after_s)
    leader = next(
        host for host in world.hosts.values() if host.alive and web in host.agent._storage_leading.repair._copies
    )
    target = world.fetched[0][0]
    world.crash(leader.identity.node)
    world.run(lambda: redundant(world, web), 2 * LOST_S + copy_s(world) + 10, "two holders again")
    world.pass_time(90)
    assert redundant(world, web)
    assert len(world.fetched) == (1 if target != leader.identity.node else 2), (target, leader.identity.node)


def test_a_target_that_dies_in_the_middle_of_a_copy_is_replaced():
    world = fabric(racks=4)
    pushed(world, WEB, "r1s01", "r2s01")
    world.fetch_s = dict.fromkeys(world.hosts, 10.0)
    world.crash("r1s01")
    world.run(lambda: bool(world.fetched), 60, "a copy has begun")
    first = world.fetched[0][0]
    world.crash(first)
    world.run(lambda: redundant(world, WEB), LOST_S + 10 + ROUNDS_S, "two holders again")
    assert world.fetched[-1][0] != first


def test_a_target_that_fails_is_passed_over_and_later_tried_again_when_there_is_nobody_else():
    world = fabric(racks=4)
    pushed(world, WEB, "r1s01", "r2s01")
    world.refuses = {"r3s01": "disk full", "r4s01": "disk full"}
    world.crash("r1s01")
    world.run(lambda: len(world.fetched) == 2, LOST_S + copy_s(world), "both were tried")
    assert {node for node, _ in world.fetched} == set(world.refuses)
    world.pass_time(10)
    assert len(world.fetched) == 2, "each is let be for a while"
    world.refuses.clear()
    world.run(lambda: redundant(world, WEB), 2 * world.settings.repair_interval_s, "two holders again")


def test_one_target_is_not_given_everything_at_once():
    world = fabric(racks=3, repair_copies=8, repair_copies_a_target=2)
    many = digests(12)
    for digest in many:
        pushed(world, digest, "r1s01", "r2s01")
    world.fetch_s = dict.fromkeys(world.hosts, 1.0)
    world.crash("r1s01")
    most = 0

    def done() -> bool:
        nonlocal most
        repairs = [host.agent._storage_leading.repair for host in world.hosts.values()]
        most = max(most, *(len(repair._copies) for repair in repairs))
        return redundant(world, *many)

    world.run(done, LOST_S + copy_s(world) + 20, "all redundant")
    assert most == 2, "of each leader, to the only agent with room"


def test_a_source_that_dies_in_the_middle_ends_the_copy_and_another_source_is_taken():
    world = fabric(racks=4)
    pushed(world, WEB, "r1s01", "r2s01")
    world.fetch_s = dict.fromkeys(world.hosts, 10.0)
    world.crash("r1s01")
    world.run(lambda: bool(world.fetched), 60, "a copy has begun")
    world.crash("r2s01")  # the last holder
    world.pass_time(60)
    assert holders(world, WEB) == []
    world.boot("r1s01", "r1", "storage")
    world.run(lambda: redundant(world, WEB), copy_s(world) + 40, "two holders again")


@pytest.mark.parametrize("others", [("r2s01",), ("r2s01", "r3s01")])
def test_a_rotten_chunk_is_replaced_where_it_was_at_once(others: tuple[str, ...]):
    """There is no grace: nobody restarts. And a damaged copy is healed even beside holders enough."""
    world = fabric(racks=3)
    pushed(world, WEB, "r1s01", *others)
    world.pass_time(10)
    host = world.hosts["r1s01"]
    host.held.discard(WEB)
    host.damaged.add(WEB)
    world.tell_store(host)
    world.run(lambda: WEB in host.held, ROUNDS_S, "healed")
    assert world.fetched == [("r1s01", WEB)]


def test_content_in_one_rack_alone_gets_a_copy_in_another_when_one_has_room():
    world = fabric(racks=2, storage=2)
    for index in (1, 2):
        world.hosts[f"r2s0{index}"].free_bytes = 10
        world.tell_store(world.hosts[f"r2s0{index}"])
    pushed(world, WEB, "r1s01", "r1s02")
    world.pass_time(90)
    assert world.fetched == []
    world.hosts["r2s02"].free_bytes = 1 << 30
    world.tell_store(world.hosts["r2s02"])
    world.run(lambda: redundant(world, WEB), 60 + copy_s(world), "a copy in the other rack")
    assert world.fetched == [("r2s02", WEB)]


def test_a_full_fabric_says_so_once_and_goes_on_when_there_is_room():
    world = fabric(racks=3)
    pushed(world, WEB, "r1s01", size=1 << 41)
    world.pass_time(150)
    assert world.fetched == []
    assert len([text for text in world.noted if "room" in text]) == 1, world.noted
    world.hosts["r3s01"].free_bytes = 1 << 42
    world.tell_store(world.hosts["r3s01"])
    world.run(lambda: redundant(world, WEB), 60, "a copy where there is room")


def test_content_that_nobody_holds_is_told_once_counted_and_repaired_when_a_holder_is_back():
    world = fabric(racks=3)
    pushed(world, WEB, "r1s01")
    host = world.hosts["r1s01"]
    host.free_bytes = 0
    world.hosts["r2s01"].free_bytes = world.hosts["r3s01"].free_bytes = 10
    for one in world.hosts.values():
        world.tell_store(one)
    world.crash("r1s01")
    world.pass_time(120)
    assert len([text for text in world.noted if "nobody who is here has it whole" in text]) == 1, world.noted
    repairs = [one.agent._storage_leading.repair for one in world.hosts.values() if one.alive]
    assert (sum(one.lacking for one in repairs), sum(one.lost for one in repairs)) == (1, 1)
    world.hosts["r3s01"].free_bytes = 1 << 30
    world.tell_store(world.hosts["r3s01"])
    world.boot("r1s01", "r1", "storage")
    world.run(lambda: redundant(world, WEB), copy_s(world), "repaired")
    world.pass_time(40)
    repairs = [one.agent._storage_leading.repair for one in world.hosts.values() if one.alive]
    assert (sum(one.lacking for one in repairs), sum(one.lost for one in repairs)) == (0, 0)


def test_what_is_deleted_before_its_copy_begins_is_not_brought_back():
    world = fabric(racks=3)
    pushed(world, WEB, "r1s01", "r2s01", name="web")
    world.crash("r1s01")

    def about_to_begin() -> bool:
        """A leader has read the records, and asks who holds what: it will find that a copy is due."""
        for host in world.hosts.values():
            repair = host.agent._storage_leading.repair
            if repair._round and repair._round.share and any(repair._ripe_at(one) < world.now for one in
                                                             repair._lacking.values()):  # fmt: skip
                return True
        return False

    world.run(about_to_begin, LOST_S + copy_s(world), "a copy is about to begin")
    world.tree.apply(0, zt.Delete(paths.image("web")))
    world.pass_time(120)
    assert world.fetched == []
    assert not any(host.agent._storage_leading.repair.lacking for host in world.hosts.values() if host.alive)


def test_a_deployment_that_is_not_over_keeps_its_content_redundant():
    world = fabric(racks=3)
    for node in ("r1s01", "r2s01"):
        world.hosts[node].held.add("b3:" + "ab" * 32)
        world.tell_store(world.hosts[node])
    world.create(1, submit=False)  # of that content, which no image record names
    world.crash("r1s01")
    world.run(lambda: bool(world.fetched), LOST_S + copy_s(world), "it is copied")


def test_during_an_outage_nothing_is_begun_and_afterwards_the_grace_begins_anew():
    world = fabric(racks=3)
    pushed(world, WEB, "r1s01", "r2s01")
    world.crash("r1s01")
    world.run(lambda: any(h.agent._storage_leading.repair.lacking for h in world.hosts.values() if h.alive), 20, "seen")
    world.pass_time(world.settings.repair_grace_s - 1)
    for host in world.hosts.values():
        if host.alive:
            world.suspend(host)
    world.pass_time(2.0)  # less than after which a leader counts itself out
    for host in world.hosts.values():
        if host.alive:
            assert host.agent.leads
            world.resume(host)
    took = world.run(lambda: bool(world.fetched), copy_s(world), "a copy begins")
    assert took >= world.settings.repair_grace_s


def test_a_long_outage_is_outlasted_without_hands():
    world = fabric(racks=3)
    pushed(world, WEB, "r1s01", "r2s01")
    world.hosts["r1s01"].alive = False
    living = [host for host in world.hosts.values() if host.alive]
    for host in living:
        world.suspend(host)
    world.pass_time(120)
    assert world.fetched == []
    for host in living:
        world.resume(host)
    world._expire(world.hosts["r1s01"].session)
    world.run(lambda: redundant(world, WEB), copy_s(world) + ROUNDS_S, "two holders again")


def test_news_of_one_rack_reaches_the_leader_whose_share_it_is():
    """Without it, that leader would learn of it at its next regular round."""
    world = fabric(racks=3, storage=2, repair_interval_s=10_000)
    many = digests(9)
    for digest in many:
        pushed(world, digest, "r1s02", "r2s01")
    for host in world.hosts.values():
        host.agent._storage_leading.repair._due = world.now + 0.1 if host.agent.leads else None
    world.pass_time(3)
    world.crash("r1s02" if storage_leader(world, "r1").identity.node != "r1s02" else "r2s01")
    world.run(lambda: redundant(world, *many), LOST_S + copy_s(world) + 10, "all redundant")


def test_a_storm_of_news_makes_no_storm_of_rounds():
    world = fabric(racks=3)
    pushed(world, WEB, "r1s01", "r2s01")
    world.pass_time(5)
    before = world.tree.reads
    address = storage_leader(world, "r1").identity.address
    for number in range(1000):
        world.at(number / 100, lambda: world._send("tcp://r2/1", address, HoldersChanged("r2")))
    world.pass_time(10)
    assert world.tree.reads - before <= 12 * 3, "two lists and a record a round, at most one round a second"


def test_the_status_of_a_rack_tells_what_lacks_holders():
    world = fabric(racks=1)
    pushed(world, WEB, "r1s01")
    world.pass_time(40)
    host = world.hosts["r1s01"]
    effects = host.agent.handle(world.now, 0, fx.Received("tcp://api/1", RackStatusCall("c")))
    [status] = [one.message for one in effects if isinstance(one, fx.Send) and isinstance(one.message, RackStatus)]
    assert (status.images_lacking, status.images_lost) == (1, 0)
    assert Codec().decode(Codec().encode(status, ""))[1] == status


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_lost_everything_is_redundant_again_when_the_trouble_ends(seed: int):
    """Crashes, restarts, rot, outages and failing targets, then quiet: what any living agent holds is held twice."""
    rng = random.Random(seed)
    world = fabric(racks=4, storage=2)
    many = digests(12)
    stores = sorted(world.hosts)
    for digest in many:
        pushed(world, digest, *rng.sample(stores[:4], 1), *rng.sample(stores[4:], 1))
    for node in stores:
        world.fetch_s[node] = rng.choice((0.05, 1.0, 8.0))
    for _ in range(25):
        world.pass_time(rng.uniform(0.1, 8.0))
        node = rng.choice(stores)
        host = world.hosts[node]
        match rng.randrange(5):
            case 0 if host.alive and sum(one.alive for one in world.hosts.values()) > 5:
                world.crash(node)
            case 1 if not host.alive:
                world.boot(node, host.identity.rack, "storage")
            case 2 if host.alive and host.held:
                rotten = rng.choice(sorted(host.held))
                if len(holders(world, rotten)) > 1:
                    host.held.discard(rotten)
                    host.damaged.add(rotten)
                    world.tell_store(host)
            case 3:
                world.refuses = {} if world.refuses else {node: "disk full"}
            case 4 if host.alive and host.session not in world.away:
                world.suspend(host)
                world.pass_time(rng.uniform(0.1, 3.5))
                world.resume(host)
    world.refuses = {}
    kept = [digest for digest in many if holders(world, digest)]
    assert kept
    world.run(lambda: redundant(world, *kept), 120, "all that is left is redundant")
    world.pass_time(2 * world.settings.repair_interval_s)
    assert redundant(world, *kept)
    living = [host for host in world.hosts.values() if host.alive]
    assert not any(host.damaged & set(kept) for host in living), "and healed"
    assert sum(host.agent._storage_leading.repair.lacking for host in living) == len(many) - len(kept)


def test_content_that_is_pushed_anew_is_not_taken_for_one_that_has_lacked_holders_all_the_time():
    """It was dropped while its record was still there, and is being pushed again when the grace of that is over."""
    world = fabric(repair_interval_s=60.0)
    pushed(world, WEB, "r1s01", "r2s01")
    world.pass_time(3)
    for node in ("r1s01", "r2s01"):
        world.hosts[node].held.clear()
        world.tell_store(world.hosts[node])
    lacking = [host.agent._storage_leading.repair._lacking for host in world.hosts.values()]
    world.run(lambda: any(lacking), 20, "its leader has seen it")
    path = paths.image(f"i-{WEB[-8:]}")
    world.tree.apply(0, zt.Delete(path))
    world.pass_time(world.settings.repair_grace_s - 0.2)
    world.tree.apply(0, zt.Create(path, encode(Image(f"i-{WEB[-8:]}", WEB, 1000, "tar", ("r1s01", "r2s01"), 0))))
    world.hosts["r1s01"].held.add(WEB)
    world.tell_store(world.hosts["r1s01"])
    world.pass_time(1)
    world.hosts["r2s01"].held.add(WEB)
    world.tell_store(world.hosts["r2s01"])
    world.pass_time(40)
    assert holders(world, WEB) == ["r1s01", "r2s01"]
