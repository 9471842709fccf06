"""Identity of managents: a path through the hierarchy (HPL-2001-321, section 5.2).

    childPath ::= parentPath + "/" + local child enumeration

A path is unique, says nothing of hosts or addresses, and is made by the initiator that deploys the child. The part that
an initiator adds is a number or a name, as its configuration says. `TOP` ("") is the parent of the first level: a
person or a program that starts a deployment.
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

TOP = ""
MAX_PART_CHARS = 64
MAX_DEPTH = 16
MAX_PATH_CHARS = 512

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9_-])?"
PART = re.compile(_PART, re.ASCII)

Path = Annotated[str, msgspec.Meta(pattern=rf"^(?:/{_PART}){{0,{MAX_DEPTH}}}\Z", max_length=MAX_PATH_CHARS)]
"""As messages and records carry it; "" is the top."""

Managent = Annotated[str, msgspec.Meta(pattern=rf"^(?:/{_PART}){{1,{MAX_DEPTH}}}\Z", max_length=MAX_PATH_CHARS)]
"""A path that is not the top's, which nobody can deploy."""


class BadIdentity(ValueError):
    """No managent can have this identifier: what was expected, what was found."""


def check_path(text: str) -> str:
    """`text` if it is the path of a managent; raises BadIdentity."""
    if not text.startswith("/"):
        raise BadIdentity(f"managent id: expected a path like /site/rack3/node7, found {text[:100]!r}")
    parts = text[1:].split("/")
    for part in parts:
        check_part(part)
    if len(parts) > MAX_DEPTH:
        raise BadIdentity(
            f"managent id {text[:100]!r}...: expected at most {MAX_DEPTH} levels, found {len(parts)}; "
            "do initiators deploy each other in a circle?"
        )
    if len(text) > MAX_PATH_CHARS:
        raise BadIdentity(f"managent id: expected at most {MAX_PATH_CHARS} characters, found {len(text)}")
    return text


def check_part(part: str) -> str:
    """`part` if it can be one level of a path; raises BadIdentity."""
    if not PART.fullmatch(part):
        raise BadIdentity(
            f"managent id: expected parts of 1 to {MAX_PART_CHARS} letters, digits, '.', '_', '-', neither beginning "
            f"with '.' or '-' nor ending with '.', found {part[:100]!r}"
        )
    return part


def join(parent: str, part: str) -> str:
    """The child's path; raises BadIdentity when the child would be too deep or `part` is none."""
    return check_path(f"{parent}/{check_part(part)}")


def parent_of(path: str) -> str:
    return path.rpartition("/")[0]


def name_of(path: str) -> str:
    """The last part: the enumeration that the parent gave."""
    return path.rpartition("/")[2]


def depth(path: str) -> int:
    """Levels; 0 for the top."""
    return path.count("/")


def is_within(path: str, top: str) -> bool:
    """`path` is `top` or below it."""
    return path == top or path.startswith(f"{top}/")


def relative(path: str, scope: str) -> str:
    """`path` cut by the position of a domain repository (section 5.6): /MA/M7/M-PA within /MA/M7 is /M-PA.
    Raises BadIdentity when it is not below it."""
    if not scope:
        return path
    if not path.startswith(f"{scope}/"):
        raise BadIdentity(f"managent id {path}: expected one below {scope}, the scope of the domain's repository")
    return path[len(scope) :]
