"""bench/RESULTS.md: each program that measures writes a section of its own, with the machine and the commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "RESULTS.md"


def machine() -> str:
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    total = re.search(r"^MemTotal: +(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    gib = int(total[1]) / 2**20 if total else 0
    distribution = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    cores = len(os.sched_getaffinity(0))
    processor = model[1] if model else platform.machine()
    return f"{cores} cores ({processor}), {gib:.0f} GiB, {distribution}, Python {platform.python_version()}"


def commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(("git", *arguments), cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + (" with changes" if git("status", "--porcelain", "-uno") else "")


def write(name: str, section: str) -> None:
    """Replace the section of this name, or put it at the end. `section`: its text, without the marks around it."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    text = RESULTS.read_text() if RESULTS.exists() else "# What was measured\n"
    if begin in text:
        head, rest = text.split(begin, 1)
        rest = rest.split(end, 1)[1]
    else:
        head, rest = f"{text.rstrip()}\n\n", ""
    RESULTS.write_text(f"{head}{begin}{section.rstrip()}\n{end}{rest}")
