"""The file that names the hosts: what it may say, and what is said of a line that is wrong."""

from __future__ import annotations

import pytest

from deploy.ssh.hosts import MAX_HOSTS, MAX_LINE_CHARS, BadHosts, Host, parse_hosts


def test_all_that_a_line_can_say() -> None:
    text = """
# rack 1
root@192.0.2.11:2222   name=r1c01 domain=/site/r1   # its first
\t[2001:db8::12]
[fe80::1%eth0]:22 domain=/site/r2
build-host#1
"""
    with pytest.raises(BadHosts, match=r"hosts\.txt, line 6: .*found 'build-host#1'"):
        parse_hosts(text, "hosts.txt")
    assert parse_hosts(text.replace("#1", ""), "hosts.txt") == (
        Host("192.0.2.11", "root", 2222, "r1c01", "/site/r1"),
        Host("2001:db8::12"),
        Host("fe80::1%eth0", port=22, domain="/site/r2"),
        Host("build-host"),
    )


@pytest.mark.parametrize("text", ["a", "root@a", "a:1", "u@[::1]:65535", "[::1]", "svc$@a"])
def test_a_host_is_shown_as_it_was_written(text: str) -> None:
    (host,) = parse_hosts(text, "f")
    assert str(host) == text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("-oProxyCommand=id", "not beginning with '-'"),
        ("root@-oProxyCommand=id", "not beginning with '-'"),
        ("-x@host", "expected a user's name before the @, found '-x'"),
        ("$(id)@host", "expected a user's name before the @"),
        ("a;id", "expected a host's name"),
        ("`id`", "expected a host's name"),
        ("@host", "expected a user's name before the @, found ''"),
        ("user@", "expected a host's name or address"),
        ("host:", "expected a port from 1 to 65535, found ''"),
        ("host:0", "expected a port from 1 to 65535, found '0'"),
        ("host:65536", "expected a port from 1 to 65535"),
        ("host:22x", "expected a port from 1 to 65535"),
        ("host:٢٢", "expected a port from 1 to 65535"),
        ("2001:db8::1", r"expected an IPv6 address in brackets, as \[2001:db8::1\]"),
        ("[2001:db8::1", "expected an IPv6 address in brackets"),
        ("[host]", "expected an IPv6 address in brackets"),
        ("[::1%`id`]", "expected an IPv6 address in brackets"),
        ("[::1]22", "expected nothing or :port after the brackets, found '22'"),
        ("host r1c01", "expected name=… or domain=… after the host, found 'r1c01'"),
        ("host port=22", "expected name=… or domain=… after the host, found 'port=22'"),
        ("host name=a name=b", "expected name=… once"),
        ("host name=../x", "neither beginning with '.'"),
        ("host name=", "expected a name of 1 to 64"),
        ("host name=a;id", "expected a name of 1 to 64"),
        (f"host name={'a' * 65}", "expected a name of 1 to 64"),
        ("host domain=site", "expected a path like"),
        ("host domain=/site/../r1", "neither beginning with '.'"),
        ("h" * 254, "expected a host's name"),
        ("h" * (MAX_LINE_CHARS + 1), f"expected at most {MAX_LINE_CHARS} characters, found {MAX_LINE_CHARS + 1}"),
    ],
)
def test_a_wrong_line_is_named_by_its_number(line: str, said: str) -> None:
    with pytest.raises(BadHosts, match=said) as raised:
        parse_hosts(f"# the hosts\n\n{line}\n", "hosts.txt")
    assert str(raised.value).startswith("hosts.txt, line 3: ")


def test_a_host_and_a_name_come_once() -> None:
    with pytest.raises(BadHosts, match="line 3: expected each host once, found root@A again, which line 1 has"):
        parse_hosts("a\nb\nroot@A\n", "f")
    with pytest.raises(BadHosts, match="line 2: expected each name once, found r1c01 again, which line 1 has"):
        parse_hosts("a name=r1c01\nb name=r1c01\n", "f")
    assert len(parse_hosts("a\na:2222\n", "f")) == 2, "another port is another host"


def test_no_host_and_too_many() -> None:
    with pytest.raises(BadHosts, match=r"expected a host a line, .* found none"):
        parse_hosts("\n# nobody\n", "f")
    with pytest.raises(BadHosts, match=f"line {MAX_HOSTS + 1}: expected at most {MAX_HOSTS} hosts, found more"):
        parse_hosts("".join(f"h{number}\n" for number in range(MAX_HOSTS + 1)), "f")
