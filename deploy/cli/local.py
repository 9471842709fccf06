"""`fabric up` and `fabric demo` bring their agents up as managents (deploy.local)."""

from __future__ import annotations

from typing import Any

KEEPER = "deploy.local.keeper"


def register(subparsers: Any) -> None:
    """After the fabric's own sub-commands: gives two of them another keeper."""
    for name in ("up", "demo"):
        subparsers.choices[name].set_defaults(keeper=KEEPER)
