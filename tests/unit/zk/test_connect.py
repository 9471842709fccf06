"""Connect strings: what they mean, and what is said of those that mean nothing."""

from __future__ import annotations

import pytest

from zk.connect import ConnectString, Unreachable, parse


@pytest.mark.parametrize(
    ("text", "servers", "chroot", "hosts"),
    [
        ("zk", [("zk", 2181)], "", "zk:2181"),
        ("zk:99", [("zk", 99)], "", "zk:99"),
        (" a:1 , b:2/ ", [("a", 1), ("b", 2)], "", "a:1,b:2"),
        ("a,b.c-d_e:2182/fabric/s-1", [("a", 2181), ("b.c-d_e", 2182)], "/fabric/s-1", "a:2181,b.c-d_e:2182"),
        ("[::1]:2181,[fd00::3]/x", [("::1", 2181), ("fd00::3", 2181)], "/x", "[::1]:2181,[fd00::3]:2181"),
    ],
)
def test_what_connect_strings_mean(text: str, servers: list[tuple[str, int]], chroot: str, hosts: str) -> None:
    assert parse(text) == ConnectString(tuple(servers), chroot)
    assert parse(text).hosts == hosts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected servers as host:port,host:port, found ''"),
        ("a,,b", "found ''"),
        ("a:b", "found 'a:b'"),
        ("a:0", "found 'a:0'"),
        ("a:70000", "found 'a:70000'"),
        ("a b", "found 'a b'"),
        ("::1", "found '::1'"),
        ("a:1:2", "found 'a:1:2'"),
        ("zk://a", "found 'zk:'"),
        ("a/x//y", "expected a chroot like /fabric/site-a after the servers, found part ''"),
        ("a/x/", "found part ''"),
        ("a/../x", "found part '..'"),
        ("a/x y", "found part 'x y'"),
        (",".join(f"h{n}" for n in range(33)), "expected at most 32 servers, found 33"),
    ],
)
def test_what_is_said_of_others(text: str, said: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the text is looked at below
        parse(text)
    assert said in str(error.value)
    assert "connect string" in str(error.value)


def test_unreachable_names_servers_and_says_what_to_do() -> None:
    error = Unreachable("a:1,b:2", 2.5)
    assert str(error) == (
        "no ZooKeeper server answered at a:1,b:2 within 2.5 s: start one there, "
        "or give another connect string (host:port,host:port/chroot)"
    )
    assert isinstance(error, ConnectionError)
