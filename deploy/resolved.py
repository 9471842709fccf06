"""What a repository's references gave for one managent (steps 2 to 4 of HPL-2001-321, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deploy.configuration import Configuration
from deploy.messages import Charge
from deploy.records import Prints


@dataclass(frozen=True, slots=True, weakref_slot=True)
class CodeFile:
    """One code reference's content. `file`: a whole, verified copy in the cache, not to be changed; it stays at least
    until the `Resolved` that names it is dropped. `name`: the last part of the reference, as a file name. `type`: the
    reference's `type` attribute, or ""."""

    url: str
    name: str
    type: str
    file: Path
    digest: str


@dataclass(frozen=True, slots=True)
class Resolved:
    """`code` in the order of the repository's entries; `install` and `managent` merged in order, the later one wins.
    `ms`: how long steps 2 (the references), 3 (the code) and 4 (configuration) took."""

    code: tuple[CodeFile, ...]
    install: Configuration
    managent: Configuration
    prints: Prints
    ms: tuple[int, int, int] = (0, 0, 0)


class Unresolved(Exception):
    """The repository or a reference did not give what was needed: which, what was expected, what was found. `again`:
    trying again later may help (no answer, half a download, the server's error); else the description is wrong."""

    def __init__(self, reason: str, again: bool) -> None:
        super().__init__(reason)
        self.again = again


class Resolver(Protocol):
    async def resolve(self, path: str, charge: Charge) -> Resolved:
        """Ask `charge.repository` for managent `path` (all four kinds of BRP requests in one), fetch what it refers to,
        merge. Raises Unresolved."""

    async def close(self) -> None: ...
