"""How far a rollout goes, seen from one initiator. Pure.

The order of the tree is depth first, an initiator before its children, children by their index. A watermark `until` is
a path: everything up to and including it in this order; "" is everything. What that means for the children of one
initiator follows from the next part of the path below it, so nobody needs to know the tree:

    /site, until /site/r2/n5:  r1 and all below it; r2 itself; below r2 up to /site/r2/n5; r3 and later not yet
    /site, until /site/r2:     r1 and all below it; r2 itself, nothing below it
    /site, until /site:        none of the children
"""

from __future__ import annotations

ALL = None


def frontier(path: str, until: str) -> str | None:
    """The name of the last child of the initiator at `path` that is reached; "" when none is; ALL for all of them."""
    if not until:
        return ALL
    if not until.startswith(f"{path}/"):
        return ""
    return until[len(path) + 1 :].partition("/")[0]


def child_until(path: str, name: str, until: str) -> str:
    """What to tell the child `name`, who is reached: `until` when it is itself the frontier, else everything."""
    return until if until and frontier(path, until) == name else ""
