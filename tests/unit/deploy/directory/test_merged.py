"""One entry for a stub that comes to the directory in several ways."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from deploy.directory.stubs import merged
from deploy.records import StubRecord
from tests.deployment import guid_of, stub_record

BOOT = stub_record("web1", domain="")
LISTED = StubRecord("web1", "", "/site/r7", "", "", 0, "operator")
NEWER = replace(BOOT, guid=guid_of("newer"), address="tcp://192.0.2.9:1/" + guid_of("newer"), pid=7)
PLACED = replace(LISTED, address="tcp://192.0.2.8:1/" + guid_of("placed"))


@pytest.mark.parametrize(
    ("found", "new", "wanted"),
    [
        (BOOT, BOOT, BOOT),
        (BOOT, NEWER, NEWER),
        (LISTED, BOOT, replace(BOOT, domain="/site/r7", by="operator")),
        (LISTED, replace(BOOT, domain="/lab"), replace(BOOT, domain="/lab", by="operator")),
        (BOOT, LISTED, replace(BOOT, domain="/site/r7", by="operator")),
        (replace(BOOT, domain="/lab"), replace(LISTED, domain=""), replace(BOOT, domain="/lab", by="operator")),
        (replace(BOOT, domain="/lab"), NEWER, NEWER),
        (BOOT, PLACED, PLACED),
        (PLACED, LISTED, PLACED),
        (BOOT, replace(BOOT, by="discovery"), BOOT),
        (BOOT, replace(NEWER, by="discovery"), replace(NEWER, by="discovery")),
    ],
)
def test_what_becomes_of_an_entry(found: StubRecord, new: StubRecord, wanted: StubRecord) -> None:
    assert merged(found, new) == wanted
    assert merged(wanted, new) == wanted, "again, it changes nothing"
