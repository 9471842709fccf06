"""What results say of where they were taken: the machine, and the commit when this is a checkout."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

import fabric

ROOT = Path(fabric.__file__).parents[1]
GIT_WAIT_S = 10.0
FIGURES = ("bench/RESULTS.md", "bench/plots", "bench/seeds.jsonl")


def machine() -> str:
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    total = re.search(r"^MemTotal: +(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    gib = int(total[1]) / 2**20 if total else 0
    try:
        distribution = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:  # a container that does not say; no reason to lose what was measured
        distribution = "Linux"
    processor = model[1] if model else platform.machine()
    return f"{cores()} cores ({processor}), {gib:.0f} GiB, {distribution}, Python {platform.python_version()}"


def cores() -> int:
    return len(os.sched_getaffinity(0))


def commit() -> str:
    """Of the checkout that this code runs from, and whether its files differ from that; "" when it is none. What
    measuring writes (FIGURES) makes no difference."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ("git", *arguments), cwd=ROOT, capture_output=True, text=True, check=True, timeout=GIT_WAIT_S
        )
        return done.stdout.strip()

    if not (ROOT / ".git").exists():
        return ""
    try:
        changed = git("status", "--porcelain", "-uno", "--", ".", *(f":!{path}" for path in FIGURES))
        return git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return ""
