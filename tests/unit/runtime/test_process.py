"""What a process checks before it hosts agents, and that importing it starts nothing."""

from __future__ import annotations

import subprocess
import sys


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_the_soft_limit_of_file_descriptors_is_raised_to_the_hard_one() -> None:
    code = """
import resource
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
from fabric.runtime.process import raise_file_limit
assert raise_file_limit(1) == ""
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
"""
    result = python(code)
    assert result.returncode == 0, result.stderr


def test_too_few_file_descriptors_are_refused_with_what_to_do() -> None:
    code = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 300))
from fabric.runtime.process import raise_file_limit
print(raise_file_limit(20))
"""
    said = python(code).stdout
    assert "expected a limit of at least" in said
    assert "found 300: raise it" in said


def test_importing_the_process_starts_no_thread_and_opens_nothing() -> None:
    """A warm parent imports it, then forks."""
    code = """
import os, threading
before = set(os.listdir("/proc/self/fd"))
import fabric.runtime.process
import fabric.drivers.process, fabric.drivers.null
assert threading.active_count() == 1, threading.enumerate()
assert len(os.listdir("/proc/self/task")) == 1
assert set(os.listdir("/proc/self/fd")) == before
import zmq
assert zmq.Context._instance is None
"""
    result = python(code)
    assert result.returncode == 0, result.stderr
