"""Results as files, and two of them compared: directions, the part that is too much, and what is not alike."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from fabric.load.comparing import compare
from fabric.load.latency import summary
from fabric.load.results import BadResult, Check, Group, Result, encode, read
from tests.unit.load.given import RESULT, result

NAMES = ("A.json", "B.json")


def worse(after: Result, part: float = 0.1) -> list[str]:
    return [row.figure for row in compare(RESULT, after, NAMES, part).worse]


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "A.json"
    path.write_bytes(encode(RESULT))
    assert read(path) == RESULT


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        (b"nonsense", "found: JSON is malformed"),
        (b'{"items": []}', "found: Object missing required field `format`"),
        (b'{"format": "fabric bench load", "version": 99}', "of version 1, found 'fabric bench load' of version 99"),
        (b'{"format": "fabric bench load", "version": 1}', "missing required field"),
        (b'{"deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "maximum recursion depth exceeded"),
    ],
)
def test_what_is_no_result_is_told_in_one_line(content: bytes | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "A.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadResult) as raised:
        read(path)
    assert says in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_of_a_file_without_an_end_no_more_is_read_than_a_result_can_have() -> None:
    with pytest.raises(BadResult, match="found more than 67108864 bytes"):
        read(Path("/dev/zero"))


def test_the_same_is_not_worse_and_nothing_is_unlike() -> None:
    found = compare(RESULT, RESULT, NAMES, 0.1)
    assert found.worse == ()
    assert found.differences == ()
    assert all(row.ratio == 1 for row in found.rows if row.before)
    assert len(found.rows) > 15


def test_fewer_requests_and_longer_times_are_worse_by_more_than_the_part() -> None:
    slower = result(per_s={"create": 4.4, "delete": 4.6, "all": 9.0})
    assert worse(slower) == ["create: requests a second"]
    assert worse(slower, 0.15) == []
    assert worse(result(per_s={"create": 50.0, "delete": 50.0, "all": 100.0})) == []
    longer = result(latencies={**RESULT.latencies, "delete settled": summary([0.34])})
    assert worse(longer) == ["delete settled p50", "delete settled p90", "delete settled p99"]


def test_what_was_nothing_and_is_something_is_worse_when_less_is_better() -> None:
    found = worse(result(unsent=3, checks=(Check("no request is lost", False, "3 lost"),)))
    assert found == ["requests that were due and never sent", "promises broken"]


def test_less_than_a_millisecond_is_no_difference_and_roles_are_matched_by_name() -> None:
    assert worse(result(latencies={"create settled": summary([0.0209, 0.0309, 0.0409])})) == []
    groups = (Group("API", 1, 2.0, 20.0, 50.0, 60.0), Group("compute agents", 9, 1.0, 9.0, 9.0, 9.0))
    assert worse(result(groups=groups)) == ["CPU a request, API"]


def test_settings_that_are_not_alike_are_named() -> None:
    other = result(machine="4 cores", plan=msgspec.structs.replace(RESULT.plan, clients=32, count=50))
    found = {one.setting: (one.before, one.after) for one in compare(RESULT, other, NAMES, 0.1).differences}
    assert found == {"machine": ("2 cores", "4 cores"), "plan.clients": ("2", "32"), "plan.count": ("4", "50")}


def test_a_tick_of_a_role_that_does_nothing_is_no_difference() -> None:
    """Of a hundred requests, one tick of 10 ms is 0.1 ms each: what is below can't be told from none."""
    idle, ticked = (result(groups=(Group("storage leaders", 2, cpu, cpu, 20.0, 30.0),)) for cpu in (0.0, 0.06))
    assert compare(idle, ticked, NAMES, 0.1).worse == ()
    fatter = result(groups=(Group("storage leaders", 2, 0.0, 0.2, 23.0, 30.0),))
    assert [row.figure for row in compare(idle, fatter, NAMES, 0.1).worse] == [
        "CPU a request, storage leaders", "memory, storage leaders",
    ]  # fmt: skip
