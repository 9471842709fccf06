"""Leftovers against the race with a push of the same bytes: the fence, and what becomes of it when replies are lost."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from fabric.effects import CallTree, DropContent
from fabric.records import Image, encode
from fabric.roles.leftovers import DROP_WAIT_S, JITTER, Leftovers
from fabric.roles.outbox import Outbox
from fabric.roles.settings import Settings
from tests.unit.roles.world import Tree
from zk import paths
from zk import tree as zt

HEX = "ee" * 32
LEFT = "b3:" + HEX
USED = "b3:" + "ab" * 32
FENCE = paths.drop_fence(HEX)


def record_of(name: str, digest: str) -> zt.Create:
    image = Image(name=name, digest=digest, size=1, kind="tar", holders=(), pushed_ms=0)
    return zt.Create(paths.image(name), encode(image))


def push(tree: Tree, name: str, digest: str) -> zt.Outcome:
    """As the API writes a record: not while the content's fence is up."""
    fence = paths.drop_fence(digest.partition(":")[2])
    return tree.apply(7, zt.Multi((zt.Create(fence), zt.Delete(fence), record_of(name, digest))))


@dataclass
class Bench:
    """One storage agent's leftovers on a tree. `step` does one operation; `lose` makes a reply ConnectionLost."""

    tree: Tree
    session: int = 1
    salt: str = "a"
    now: float = 0.0
    held: frozenset[str] = frozenset({LEFT, USED})
    dropped: list[str] = field(default_factory=list)
    asked: list[CallTree] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.out = Outbox()
        self.role = Leftovers(Settings(), self.out, self.salt)
        self.role.begin(self.now)

    def take(self) -> None:
        for effect in self.out.take():
            if isinstance(effect, CallTree):
                self.asked.append(effect)
            elif isinstance(effect, DropContent):
                self.dropped.append(effect.digest)

    def wake(self) -> None:
        due = self.role.next_deadline
        assert due is not None
        self.now = max(self.now, due)
        self.role.tick(self.now, self.held)
        self.take()

    def step(self, *, lose: bool = False) -> zt.Op:
        """The next operation, after as many timers as it takes."""
        for _ in range(1000):
            if self.asked:
                break
            self.wake()
        asked = self.asked.pop(0)
        outcome = self.tree.apply(self.session, asked.op)
        assert self.role.on_tree(self.now, asked.token, zt.ConnectionLost("/") if lose else outcome)
        self.take()
        return asked.op

    def until(self, wanted: type, path: str = "") -> None:
        """Up to, not including, the next such operation."""
        for _ in range(1000):
            if self.asked and isinstance(self.asked[0].op, wanted) and path in ("", self.asked[0].op.path):
                return
            if self.asked:
                self.step()
            else:
                self.wake()
        raise AssertionError(f"it never asked for {wanted.__name__} {path}")


def bench(images: int = 3) -> Bench:
    tree = Tree()
    for index in range(images):
        tree.apply(0, record_of(f"i{index}", USED))
    return Bench(tree)


def test_a_content_that_nothing_names_is_dropped_behind_its_fence_which_goes_when_the_store_holds_it_no_more():
    one = bench()
    one.until(zt.Exists, FENCE)
    one.step()
    assert one.dropped == [LEFT]
    one.wake()
    assert FENCE in one.tree.nodes, "the store holds it still: a record written now would have nothing behind it"
    assert isinstance(push(one.tree, "web", LEFT), zt.MultiFailed)
    one.held -= {LEFT}
    one.until(zt.Delete, FENCE)
    one.step()
    assert FENCE not in one.tree.nodes
    assert isinstance(push(one.tree, "web", LEFT), zt.Done)


def test_a_record_written_while_the_records_were_read_is_seen():
    """It drops nothing that a record names, at whichever operation the record was written."""
    for after in range(40):
        one = bench()
        for _ in range(after):
            one.step()
        before = list(one.dropped)
        if isinstance(push(one.tree, "web", LEFT), zt.MultiFailed):
            continue  # the writer is kept out, and comes again when it is dropped
        if before:
            continue  # it was dropped and given up waiting for: the writer asks the holders, and hears of the loss
        one.until(zt.Children)  # of the round that is under way, or of the next
        while one.role._suspects or one.role._fenced:
            one.step()
        assert one.dropped == [], f"a record written after {after} operations was not seen"


def test_a_record_that_can_not_be_read_keeps_everything_and_lowers_the_fence():
    one = bench()
    one.until(zt.Create, FENCE)
    one.tree.apply(0, zt.Create(paths.image("bad"), b"{"))
    one.until(zt.Delete, FENCE)
    one.step()
    assert FENCE not in one.tree.nodes
    assert one.dropped == []


@pytest.mark.parametrize("wanted", [zt.Create, zt.Children, zt.Exists])
def test_a_lost_reply_ends_the_round_and_leaves_no_fence(wanted: type):
    one = bench()
    one.until(zt.Create, FENCE)
    one.until(wanted)
    one.step(lose=True)
    assert FENCE in one.tree.nodes
    one.until(zt.Delete, FENCE)
    one.step(lose=True)
    assert isinstance(one.step(), zt.Get), "it looks whether the fence is still there"
    assert FENCE not in one.tree.nodes
    assert one.dropped == []
    one.until(zt.Exists, FENCE)  # the next round
    one.step()
    assert one.dropped == [LEFT]


def test_a_session_that_ended_behind_the_fence_drops_nothing_and_anothers_fence_is_let_be():
    one = bench()
    one.until(zt.Exists, FENCE)
    one.tree.expire(one.session)
    one.tree.apply(99, zt.Create(FENCE, ephemeral=True))
    one.step()
    assert isinstance(one.step(), zt.Get)
    assert one.dropped == []
    assert one.tree.nodes[FENCE].owner == 99


def test_of_two_holders_the_second_comes_back_when_the_first_has_dropped():
    one = bench()
    one.tree.apply(99, zt.Create(FENCE, ephemeral=True))
    for _ in range(3):
        one.until(zt.Create, FENCE)
        one.step()
    one.tree.expire(99)
    one.until(zt.Exists, FENCE)
    one.step()
    assert one.dropped == [LEFT]


def test_a_fence_that_stays_is_skipped_and_the_others_are_looked_at():
    one = bench()
    third = "b3:" + "ff" * 32
    one.held |= {third}
    one.tree.apply(99, zt.Create(FENCE, ephemeral=True))
    one.until(zt.Exists, paths.drop_fence("ff" * 32))
    one.step()
    assert one.dropped == [third]


def test_a_disk_that_does_not_drop_keeps_pushes_out_for_a_bounded_time():
    one = bench()
    one.until(zt.Exists, FENCE)
    one.step()
    began = one.now
    one.until(zt.Delete, FENCE)
    assert DROP_WAIT_S <= one.now - began < DROP_WAIT_S + 1


def test_agents_that_start_together_do_not_look_together():
    looks = []
    for salt in "abcdefgh":
        one = Bench(Tree(), salt=salt)
        one.until(zt.Children)
        looks.append(one.now)
    after_s = Settings().leftovers_after_s
    assert all(after_s <= at <= after_s * (1 + JITTER) for at in looks)
    assert len(set(looks)) == len(looks)
