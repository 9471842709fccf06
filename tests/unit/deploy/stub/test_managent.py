"""What is written down of a managent comes back as it was, and what makes no sense is said to."""

from __future__ import annotations

import random

import pytest

from deploy.configuration import Children, Configuration, InitiatorRole, ProgramRole
from deploy.messages import BipAnswer
from deploy.records import Prints
from deploy.stub.effects import Code, Installed, Run
from deploy.stub.managent import BadState, Forgotten, Managent, deletes_of, put_of, puts_of, restore
from tests.unit.deploy.stub.scene import CHARGE, PARENT

ANSWER = BipAnswer("c", "/site", "/site/a", "s1", "done", "installed", "active")
FULL = Managent(
    "/site/a",
    7,
    2,
    PARENT,
    CHARGE,
    "installed",
    "passive",
    "silent",
    "why",
    Prints("a" * 16, "b" * 16, "c" * 16),
    Configuration({"A": "1"}, {"B": "2"}),
    Configuration({}, {}, InitiatorRole((Children("names", names=("x",)),)), ProgramRole("bmp", "C", "./x", 3.0)),
    Installed("./x", (Code("i.sh"),), (Code("a.py", "C"),)),
    True,
    False,
    Run("process", "./x", 4, 5, "boot"),
    (ANSWER,),
)


def test_a_managent_comes_back_as_it_was() -> None:
    puts, deletes = puts_of(FULL)
    assert deletes == ()
    assert restore(puts) == ([FULL], [])


def test_a_record_that_shrinks_leaves_no_piece_behind() -> None:
    managent = Managent("/site/a", 1, 1, PARENT, env="installed")
    managent.installed = Installed(random.Random(1).randbytes(600_000).hex())
    disk = dict(puts_of(managent)[0])
    assert len(disk) > 1
    assert restore(disk.items())[0][0].installed == managent.installed
    managent.installed = Installed()
    puts, deletes = puts_of(managent)
    disk.update(puts)
    for key in deletes:
        del disk[key]
    assert restore(disk.items())[0] == [managent]
    for key in deletes_of(managent):
        del disk[key]
    assert disk == {}


def test_what_is_forgotten_comes_back_and_foreign_keys_are_passed_over() -> None:
    gone = Forgotten("/site/a", 7, 2, (ANSWER,))
    assert restore([put_of(gone), ("identity", b"x")]) == ([], [gone])


@pytest.mark.parametrize("damage", [b"", b"{}", b"zlib?", b'{"path": 3}'])
def test_a_record_that_makes_no_sense(damage: bytes) -> None:
    (key, _), *_ = puts_of(FULL)[0]
    with pytest.raises(BadState, match="journal entry m/"):
        restore([(key, damage)])


def test_a_record_without_its_first_piece() -> None:
    (key, value), *_ = puts_of(FULL)[0]
    with pytest.raises(BadState, match="expected pieces from 0 on"):
        restore([(key[:-1] + "1", value)])
