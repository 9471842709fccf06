"""bench/RESULTS.md: each program that measures writes a section of its own, with the machine and the commit."""

from __future__ import annotations

from fabric.load.machine import ROOT, commit, machine

RESULTS = ROOT / "bench" / "RESULTS.md"

__all__ = ["ROOT", "commit", "machine", "write"]


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
