"""A plan says what would change and why, each managent once, in the order of the tree."""

from __future__ import annotations

from msgspec.structs import replace

from deploy.expansion import Sources, Want
from deploy.identity import TOP
from deploy.plan import Change, Kind, left_behind, make_plan, rows
from deploy.records import Child, Prints, StubRef, Table

STUB = StubRef("s1", "tcp://127.0.0.1:1/" + "a" * 32)
NEW = Prints("c" * 16, "1" * 16, "d" * 16)
SOURCES = Sources(("http://r/code.sh",), ("http://r/install.xml",), ("http://r/a.xml", "http://r/b.xml"))


def row(name: str, index: int = 0, prints: Prints = NEW) -> Child:
    return Child(name, index, STUB, 1, "installed", "active", "done", prints=prints)


def want(path: str, initiator: bool = False) -> Want:
    return Want(path, NEW, initiator, SOURCES)


def change(there: Child | None) -> Change | None:
    plan = make_plan("http://r/", ("/r",), "g", [want("/r")], {} if there is None else {"/r": there})
    return plan.changes[0] if plan.changes else None


def test_what_is_not_there_is_added() -> None:
    assert change(None) == Change("/r", "add", "not there")
    gone = Child("r", 0, STUB, 1)
    assert change(gone) == Change("/r", "add", "not there")
    assert change(replace(gone, outcome="failed", reason="no code")) == Change(
        "/r", "add", "failed on stub s1: no code"
    )
    assert change(replace(gone, want="non-existent", outcome="done")) == Change("/r", "add", "uninstalled by an order")


def test_a_second_apply_has_nothing_to_do() -> None:
    assert change(row("r")) is None
    assert change(replace(row("r"), life="passive")) is None
    plan = make_plan("http://r/", ("/r",), "g", [want("/r")], {"/r": row("r")})
    assert (plan.empty, plan.unchanged, plan.counts) == (True, 1, {})


def test_the_reason_names_the_documents_that_differ() -> None:
    assert change(row("r", prints=replace(NEW, managent="0" * 16))) == Change(
        "/r", "reconfigure", "managent configuration 00000000 -> dddddddd (http://r/a.xml, http://r/b.xml)"
    )
    assert change(row("r", prints=Prints("", "2" * 16, "0" * 16))) == Change(
        "/r",
        "reinstall",
        "code none -> cccccccc (http://r/code.sh); "
        "installation configuration 22222222 -> 11111111 (http://r/install.xml); "
        "managent configuration 00000000 -> dddddddd (http://r/a.xml, http://r/b.xml)",
    )


def test_what_did_not_succeed_with_this_description_is_tried_again_only_when_told() -> None:
    failed = replace(row("r"), outcome="failed", reason="its program ended with 1", tried="g")
    assert change(failed) == Change("/r", "retry", "failed on stub s1: its program ended with 1")
    plan = make_plan("http://r/", ("/r",), "g", [want("/r"), want("/s")], {"/r": failed})
    assert plan.ordered(retry=True) == ("/r", "/s")
    assert plan.ordered(retry=False) == ("/s",)


def test_what_is_not_well_is_mended() -> None:
    lost = replace(row("r"), outcome="unreachable", reason="boot stub s1 does not answer")
    assert change(lost) == Change("/r", "mend", "unreachable on stub s1: boot stub s1 does not answer")
    assert change(replace(row("r"), life="configured")) == Change("/r", "mend", "it is configured, on stub s1")
    older = replace(row("r"), outcome="failed", reason="its program ended with 1", tried="older")
    assert change(older) == Change("/r", "mend", "failed on stub s1: its program ended with 1")


def test_what_an_order_stopped_is_started_again() -> None:
    stopped = replace(row("r"), life="configured", want="configured")
    assert change(stopped) == Change("/r", "start", "shut down by an order, on stub s1")
    assert change(replace(stopped, env="non-existent", life="non-existent", want="non-existent")) == Change(
        "/r", "add", "uninstalled by an order"
    )


def test_what_is_not_described_is_removed_last_and_what_is_invalid_stays() -> None:
    tables = {
        TOP: Table(TOP, "a" * 32, STUB.address, "o", (row("q", 1), row("r", 0))),
        "/r": Table("/r", "a" * 32, STUB.address, "o", (row("b", 1), row("a", 0), Child("gone", 2, STUB))),
    }
    there = rows(tables)
    assert list(there) == ["/r", "/r/a", "/r/b", "/r/gone", "/q"]
    wants = [want("/r", True), Want("/r/b", error="no entry matches"), want("/r/c")]
    plan = make_plan("http://r/", ("/r",), "g", wants, there)
    assert [(one.path, one.kind) for one in plan.changes] == [
        ("/r/b", "invalid"),
        ("/r/c", "add"),
        ("/r/a", "remove"),
        ("/q", "remove"),
    ]
    assert plan.target == ("/r", "/r/b", "/r/c")
    assert plan.unchanged == 1
    assert plan.ordered(retry=True) == ("/r/c",)
    assert plan.removed() == ("/r/a", "/q")
    kinds: dict[Kind, int] = {"add": 1, "remove": 2, "invalid": 1}
    assert plan.counts == kinds


def test_rows_below_what_no_table_names_are_not_there() -> None:
    tables = {"/lost": Table("/lost", "a" * 32, STUB.address, "o", (row("a"),))}
    assert rows(tables) == {}


def test_initiators_that_do_not_run_cannot_remove_what_is_below_them() -> None:
    def child(life: str) -> Child:
        env = "non-existent" if life == "non-existent" else "installed"
        return Child("x", 0, STUB, env=env, life=life)  # type: ignore[arg-type]

    there = {
        "/r": child("configured"),
        "/r/a": child("active"),
        "/r/a/1": child("configured"),
        "/r/b": child("configured"),
        "/r/b/1": child("non-existent"),
    }
    assert left_behind(there, lambda path: True) == {"/r": 3}
    assert left_behind(there, lambda path: path != "/r") == {}
    assert left_behind(there | {"/r/b/2": child("configured")}, lambda path: path == "/r/b") == {"/r/b": 1}
