"""What lies in ZooKeeper: a deployment is small however large its plan, and what makes no sense is a BadRecord."""

from __future__ import annotations

import random
import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.records import (
    MAX_PLAIN_BYTES,
    BadRecord,
    Deployment,
    Leader,
    Member,
    Share,
    Spec,
    Unplanned,
    decode,
    encode,
)
from fabric.resources import Resources
from fabric.roles.plans import plan_of
from zk.tree import MAX_DATA_BYTES

SPEC = Spec("web", "b3:" + "0" * 64, "Large", Resources(4, 8192, 40960), {"PORT": "0"}, "always")
AT = "/deployments/d-abcdef12"


def deployment(plan: tuple[Share, ...] = (), **values) -> Deployment:
    base = {"policy": "spread", "created_ms": 1, "updated_ms": 2}
    return Deployment("d-abcdef12", "shop", SPEC, 10_000, 10_000, plan=plan, **{**base, **values})


def place(ordinal: int, nodes: int) -> tuple[str, str]:
    node = ordinal % nodes
    return f"node-{node:05d}", f"rack-{node // 40:03d}"


def written(**changes: object) -> bytes:
    """A small deployment's znode, by hand, with some fields set."""
    fields = msgspec.json.decode(encode(deployment((Share("n1", "r1", "0-3"), Share("n2", "r1", "4")))))
    return msgspec.json.encode({**fields, **changes})


def refused(data: bytes, kind: type[msgspec.Struct] = Deployment) -> str:
    with pytest.raises(BadRecord) as caught:
        decode(data, kind, AT)
    assert AT in str(caught.value)
    return str(caught.value)


places = st.tuples(st.from_regex(r"\A[a-z0-9]([a-z0-9._-]{0,8}[a-z0-9])?\Z"), st.sampled_from(["r1", "r2", "r.3-x"]))


@given(st.dictionaries(st.integers(0, 9_999), places, max_size=300), st.text(max_size=20))
def test_a_deployment_is_read_back_as_it_was_written(where: dict[int, tuple[str, str]], reason: str):
    record = deployment(plan_of(where), reason=reason, labels={"a": "b"}, step=7, reasons=("x", "y"))
    assert decode(encode(record), Deployment, AT) == record


def test_a_small_record_is_json_to_read_with_any_client():
    data = encode(deployment((Share("r1c01", "r1", "0-1"), Share("r2c01", "r2", "4"), Share("r1c02", "r1", "2-3"))))
    assert msgspec.json.decode(data)["plan"] == {"r1": "r1c01=0-1 r1c02=2-3", "r2": "r2c01=4"}


def test_ten_thousand_ordinals_on_five_thousand_nodes_are_far_below_a_znodes_limit():
    record = deployment(plan_of({ordinal: place(ordinal, 5_000) for ordinal in range(10_000)}))
    assert len(encode(record)) < 64 * 1024 < MAX_DATA_BYTES
    assert decode(encode(record), Deployment, AT) == record


def test_even_dealt_out_at_random_over_five_thousand_nodes_they_are():
    ordinals = list(range(10_000))
    random.Random(3).shuffle(ordinals)
    record = deployment(plan_of({ordinal: place(at, 5_000) for at, ordinal in enumerate(ordinals)}))
    assert len(encode(record)) < 64 * 1024
    assert decode(encode(record), Deployment, AT) == record


def test_ten_thousand_ordinals_on_four_hundred_nodes_are_a_few_kilobytes():
    in_rows = deployment(plan_of({ordinal: place(ordinal // 25, 400) for ordinal in range(10_000)}))
    assert len(encode(in_rows)) < 4 * 1024
    assert decode(encode(in_rows), Deployment, AT) == in_rows


def test_what_is_packed_was_over_four_kilobytes_and_inflates_to_the_json():
    record = deployment(plan_of({ordinal: place(ordinal, 400) for ordinal in range(10_000)}))
    data = encode(record)
    assert data[:2] == b"z1"
    plain = zlib.decompress(data[2:])
    assert len(plain) > 4096
    assert decode(plain, Deployment, AT) == record


WRONG_PLANS = {
    "backwards": {"r1": "n1=9-1"},
    "letters": {"r1": "n1=zzz"},
    "too high": {"r1": "n1=10000"},
    "an ordinal twice on two nodes": {"r1": "n1=0-3 n2=3"},
    "an ordinal twice in two racks": {"r1": "n1=0-3", "r2": "n1=1"},
    "two shares of one node": {"r1": "n1=0 n1=1"},
    "no ordinals at all": {"r1": "n1"},
    "nothing": {"r1": ""},
    "two spaces": {"r1": "n1=0  n2=1"},
    "a newline": {"r1": "n1=0\n"},
    "a name that is none": {"r1": "../x=0"},
    "a rack that is none": {"R 1": "n1=0"},
    "a rack with a newline": {"r1\n": "n1=0"},
    "too many shares": {"r1": " ".join(f"n{one}=" for one in range(10_001))},
    "a list": [{"node": "n1", "rack": "r1", "ordinals": "0"}],
    "a number": {"r1": 5},
}


@pytest.mark.parametrize("plan", WRONG_PLANS.values(), ids=WRONG_PLANS.keys())
def test_a_plan_that_makes_no_sense_is_a_bad_record(plan: object):
    refused(written(plan=plan))


@pytest.mark.parametrize("ordinals", ["9-1", "zzz", "1,1", "10000", "0-"])
def test_a_share_of_what_are_no_ordinals_cannot_be(ordinals: str):
    with pytest.raises(ValueError, match="ordinals: expected"):
        Share("n1", "r1", ordinals)


def test_a_plan_with_an_ordinal_twice_is_not_even_written():
    with pytest.raises(ValueError, match="each ordinal once, found 3 again at r1/n2"):
        deployment((Share("n1", "r1", "0-3"), Share("n2", "r1", "3-5")))


def test_a_bad_plan_is_refused_in_bounded_work():
    """Each of 10,000 shares says that it has all 10,000 ordinals: the second one ends it."""
    text = " ".join(f"n{one}=0-9999" for one in range(10_000))
    assert "each ordinal once" in refused(written(plan={"r1": text}))


@pytest.mark.parametrize("field", ["generation", "settled", "epoch", "step", "created_ms"])
@pytest.mark.parametrize("value", [-1, 2**53, 2**64])
def test_a_number_that_no_message_can_carry_is_a_bad_record(field: str, value: int):
    assert field in refused(written(**{field: value}))


@pytest.mark.parametrize("name", ["n1\n", "N1", "a/b", ""])
def test_a_name_that_is_none_is_a_bad_record(name: str):
    refused(msgspec.json.encode(Leader(name, "r1", "0" * 8, "tcp://h:1/00000000")), Leader)


def test_odd_bytes_are_bad_records():
    small, packed = written(), b"z1" + zlib.compress(written())
    assert decode(packed, Deployment, AT) == decode(small, Deployment, AT)
    bomb = b"z1" + zlib.compress(b" " * (MAX_PLAIN_BYTES + 1) + small)
    assert "whole zlib stream" in refused(bomb)
    for data in (
        b"",
        b"z1",
        b"z2" + packed[2:],
        packed + b"x",
        b"z1" + small,
        b"z1" + zlib.compress(packed),
        small + b"x",
        b'{"id":"\xff"}',
        b'{"new":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        *(packed[:length] for length in range(len(packed))),
    ):
        refused(data)
        refused(data, Member)


def test_an_unknown_field_is_ignored():
    assert decode(written(new_in_1_7=[1]), Deployment, AT) == decode(written(), Deployment, AT)


@pytest.mark.parametrize("nodes", [1, 500])
def test_a_deployment_can_be_read_without_its_plan(nodes: int):
    whole = deployment(plan_of({ordinal: place(ordinal, nodes) for ordinal in range(500)}), state="running", settled=1)
    data = encode(whole)
    assert data.startswith(b"z1") == (nodes > 1)
    found = decode(data, Unplanned, "/deployments/x")
    assert {name: getattr(found, name) for name in found.__struct_fields__} == {
        name: getattr(whole, name) for name in Unplanned.__struct_fields__
    }
    assert found.final == whole.final
    with pytest.raises(BadRecord, match="/images/x"):
        decode(b"z1" + zlib.compress(b"{}"), Leader, "/images/x")
