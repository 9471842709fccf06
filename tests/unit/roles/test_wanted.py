"""What is wanted, by the records: read boundedly, believed only as a hint, and confirmed before anything is done."""

from __future__ import annotations

import pytest

from fabric.effects import CallTree, Note
from fabric.records import Deployment, Image, Spec, encode
from fabric.resources import Resources
from fabric.roles.outbox import Outbox
from fabric.roles.wanted import DEPLOYMENTS_A_ROUND, IMAGES_A_ROUND, READS_AT_ONCE, Wanted
from tests.unit.roles.world import Tree
from zk import paths
from zk import tree as zt

WEB, OLD, OTHER = ("b3:" + pair * 32 for pair in ("11", "22", "33"))


class Bench:
    def __init__(self) -> None:
        self.tree = Tree()
        self.out = Outbox()
        self.role = Wanted(self.out, "wanted:")
        self.asked: list[CallTree] = []
        self.notes: list[str] = []
        self.most = 0
        self.reads = 0
        self.ended: list[bool] = []
        self.confirmed: list[bool | None] = []

    def image(self, name: str, digest: str, size: int = 7) -> None:
        self.put(paths.image(name), encode(Image(name, digest, size, "tar", (), 0)))

    def deployment(self, number: int, digest: str, state: str = "running") -> None:
        spec = Spec("web", digest, "Large", Resources(1, 1, 1), {}, "always")
        record = Deployment(f"d-{number:08d}", "", spec, 1, 1, "spread", 0, 0, state=state, settled=1)
        self.put(paths.deployment(record.id), encode(record))

    def put(self, path: str, data: bytes) -> None:
        op = zt.Set(path, data) if path in self.tree.nodes else zt.Create(path, data)
        assert not isinstance(self.tree.apply(0, op), zt.TreeError)

    def turn(self, lose: type[zt.Op] | None = None) -> None:
        """Answer until nothing is asked any more; operations of the kind `lose` are lost."""
        while True:
            for effect in self.out.take():
                if isinstance(effect, CallTree):
                    self.asked.append(effect)
                elif isinstance(effect, Note):
                    self.notes.append(effect.text)
            self.most = max(self.most, len(self.asked))
            if not self.asked:
                return
            asked = self.asked.pop(0)
            self.reads += isinstance(asked.op, zt.Get)
            lost = lose is not None and isinstance(asked.op, lose)
            outcome = zt.ConnectionLost("/") if lost else self.tree.apply(1, asked.op)
            assert self.role.on_tree(0.0, asked.token, outcome)

    def refresh(self, lose: type[zt.Op] | None = None) -> dict[str, int]:
        self.reads = 0
        self.role.refresh(lambda now, ok: self.ended.append(ok))
        self.turn(lose)
        return self.role.contents()

    def confirm(self, digest: str, lose: type[zt.Op] | None = None) -> bool | None:
        assert self.role.confirm(digest, lambda now, wanted: self.confirmed.append(wanted))
        self.turn(lose)
        return self.confirmed.pop()


def test_images_and_deployments_that_are_not_over_are_wanted():
    one = Bench()
    assert one.refresh() == {}
    one.image("web", WEB, 100)
    one.image("again", WEB, 100)
    one.deployment(1, OLD)
    one.deployment(2, OTHER, "failed")
    one.deployment(3, OTHER, "deleted")
    assert one.refresh() == {WEB: 100, OLD: 0}
    assert one.ended == [True, True]
    one.deployment(3, OTHER, "running")
    one.tree.apply(0, zt.Delete(paths.image("web")))
    one.image("again", OLD, 50)
    assert one.refresh() == {OLD: 50, OTHER: 0}


def test_reads_are_bounded_at_a_time_and_in_a_round_and_in_a_few_rounds_all_are_read_again():
    one = Bench()
    images, deployments = IMAGES_A_ROUND + 100, DEPLOYMENTS_A_ROUND + 10
    for number in range(images):
        one.image(f"i{number:04d}", WEB)
    for number in range(deployments):
        one.deployment(number, OLD)
    assert one.refresh() == {WEB: 7, OLD: 0}, "what is new is read all, whatever it takes"
    assert (one.reads, one.most) == (images + deployments, READS_AT_ONCE)
    for number in range(images):
        one.image(f"i{number:04d}", OTHER)
    for number in range(deployments):
        one.deployment(number, OLD, "deleted")
    assert one.refresh() == {WEB: 7, OTHER: 7, OLD: 0}
    assert one.reads == IMAGES_A_ROUND + DEPLOYMENTS_A_ROUND
    assert one.refresh() == {OTHER: 7}


def test_a_record_that_makes_no_sense_is_told_once_and_what_was_known_of_it_stays():
    one = Bench()
    one.image("web", WEB)
    one.refresh()
    one.put(paths.image("web"), b"{")
    one.put(paths.image("new"), b"{")
    for _ in range(3):
        assert one.refresh() == {WEB: 7}
    assert len(one.notes) == 2
    one.image("new", OTHER)
    assert one.refresh() == {WEB: 7, OTHER: 7}


@pytest.mark.parametrize(("lose", "ok"), [(zt.Children, False), (zt.Get, True)])
def test_what_can_not_be_read_is_asked_again_in_the_next_round(lose: type[zt.Op], ok: bool):
    one = Bench()
    one.image("web", WEB)
    assert one.refresh(lose) == {}
    assert one.ended == [ok]
    assert one.refresh() == {WEB: 7}


def test_a_content_is_confirmed_by_any_record_that_names_it_still():
    one = Bench()
    one.image("web", WEB)
    one.image("zoo", WEB)
    one.deployment(1, WEB)
    one.refresh()
    assert one.confirm(WEB) is True
    one.image("web", OTHER)
    assert one.confirm(WEB) is True, "zoo does"
    one.tree.apply(0, zt.Delete(paths.image("zoo")))
    assert one.confirm(WEB) is True, "the deployment does"
    one.deployment(1, WEB, "deleted")
    assert one.confirm(WEB) is False
    assert one.role.contents() == {OTHER: 7}, "and so it is known now"
    assert one.role.confirm(WEB, lambda now, wanted: None) is False
    assert one.confirm(OTHER, zt.Get) is None


def test_answers_that_come_after_the_end_of_leadership_change_nothing():
    one = Bench()
    one.image("web", WEB)
    one.role.refresh(lambda now, ok: one.ended.append(ok))
    one.role.stop()
    one.turn()
    assert (one.ended, one.role.contents()) == ([], {})
