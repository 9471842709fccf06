"""What coordinators say of the records they write is a hint: newest first, for a moment, and only of what is ours."""

from __future__ import annotations

import msgspec

from fabric.api.latest import KEEP_S, MOST, TRUST_S, Latest
from fabric.api.reading import Versioned
from fabric.messages import RecordNews, RecordSeen
from fabric.records import Deployment, Spec, State, encode
from fabric.resources import Resources
from zk.tree import Stat

ID = "d-abcdef01"
SPEC = Spec("web", "b3:" + "12" * 32, "Small", Resources(1, 1, 1), {}, "always")
RECORD = Deployment(id=ID, name="web", spec=SPEC, count=2, min_count=2, policy="spread", created_ms=1, updated_ms=1)


def at(mzxid: int, record: Deployment = RECORD) -> Versioned[Deployment]:
    return Versioned(record, Stat(10, mzxid, mzxid - 10, 0, 0, 1, 1))


def news(mzxid: int, state: State = "running", data: bytes | None = None) -> RecordNews:
    record = msgspec.structs.replace(RECORD, state=state)
    return RecordNews(ID, RecordSeen(encode(record) if data is None else data, mzxid - 10, 10, mzxid, 1, 1), True)


def heard() -> tuple[Latest, list[str]]:
    changed: list[str] = []
    return Latest(changed.append), changed


def test_news_of_what_was_submitted_here_is_known_for_a_moment() -> None:
    latest, changed = heard()
    assert latest.wrote(5.0, at(11)) == RecordSeen(encode(RECORD), 1, 10, 11, 1, 1)
    latest.tell(5.5, news(12))
    found = latest.known(5.5, ID)
    assert found is not None
    assert (found.record.state, found.stat.mzxid, found.stat.version) == ("running", 12, 2)
    assert changed == [f"/deployments/{ID}"]
    assert latest.trusted_until(ID) == 5.5 + TRUST_S
    assert latest.known(5.5 + TRUST_S, ID) is None, "from here on ZooKeeper is asked"


def test_old_news_of_others_and_nonsense_change_nothing() -> None:
    latest, changed = heard()
    latest.tell(5.0, news(12))
    assert latest.known(5.0, ID) is None, "nobody here has submitted it"
    latest.wrote(5.0, at(20))
    for one in (news(19), news(20), news(21, data=b"{"), news(21, data=b"")):
        latest.tell(5.0, one)
    found = latest.known(5.0, ID)
    assert found is not None
    assert found.stat.mzxid == 20
    assert changed == []


def test_a_record_under_another_name_is_not_taken_for_either() -> None:
    latest, changed = heard()
    latest.wrote(5.0, at(20))
    latest.tell(5.0, news(21, data=encode(msgspec.structs.replace(RECORD, id="d-abcdef02"))))
    found = latest.known(5.0, ID)
    assert found is not None
    assert found.stat.mzxid == 20
    assert latest.known(5.0, "d-abcdef02") is None
    assert changed == []


def test_what_nobody_has_spoken_of_for_long_is_given_up() -> None:
    latest, _ = heard()
    for number in range(10):
        latest.wrote(float(number), at(11, msgspec.structs.replace(RECORD, id=f"d-{number:08}")))
    latest.wrote(KEEP_S + 5.5, at(11))
    assert len(latest._heard) == 5


def test_it_keeps_so_many_and_no_more() -> None:
    latest, _ = heard()
    for number in range(MOST + 5):
        latest.wrote(1.0, at(11, msgspec.structs.replace(RECORD, id=f"d-{number:08d}")))
    assert latest.known(1.0, "d-00000004") is None
    assert latest.known(1.0, "d-00000005") is not None


def test_what_is_older_than_the_news_does_not_take_their_place() -> None:
    """A coordinator in charge may have gone on before ZooKeeper's answer to our own write is looked at."""
    latest, _ = heard()
    latest.wrote(5.0, at(11))
    latest.tell(5.1, news(13))
    assert latest.wrote(5.2, at(12)).mzxid == 12, "the coordinator is told what was written"
    found = latest.known(5.2, ID)
    assert found is not None
    assert found.stat.mzxid == 13
