"""Whose connection it is."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from fabric.net.procs import owners

CONNECT = """
import socket, sys
link = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
sys.stdin.read()
"""


def test_a_connection_is_of_the_process_that_has_it_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        where = listener.getsockname()
        child = subprocess.Popen([sys.executable, "-c", CONNECT, str(where[1])], stdin=subprocess.PIPE)
        theirs, _ = listener.accept()
        with socket.create_connection(where) as mine, child:
            accepted, _ = listener.accept()
            ends = [(theirs.getpeername(), where), (mine.getsockname(), where)]
            unknown = (("127.0.0.1", 1), where)
            pids = {"gone": 2**22 + 1, "child": child.pid, "me": os.getpid()}
            found = owners([*ends, unknown], pids)
            strangers = owners(ends, {"child": child.pid})
            accepted.close()
            theirs.close()
            assert child.stdin
            child.stdin.close()
    assert found == {ends[0]: "child", ends[1]: "me"}
    assert strangers == {ends[0]: "child"}
    assert owners([], pids) == {}
