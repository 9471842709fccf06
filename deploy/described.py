"""A repository's information with its documents, as what it gives each managent (pure).

What follows from the entries that match is worked out once for each choice of entries, of which there are few: the
10,000 leaves of a tree mostly have one.
"""

from __future__ import annotations

from collections.abc import Mapping

from deploy.documents import ConfigurationDocument, Information, Kind, Reference
from deploy.expansion import Made, Sources, Undescribed
from deploy.matching import BadMatch, Choice, Conflict, Content, check_deployable, choose, merge, prints, references

ELSEWHERE = ("file:", "image:")
"""Code that may be readable for boot stubs, though it is not here."""


class Described:
    """`contents`: of every reference in `information`, by URL as it stands there. `broken`: why the repository serves
    an older description than it holds, or ""."""

    def __init__(
        self, generation: str, information: Information, contents: Mapping[str, Content], broken: str = ""
    ) -> None:
        self.generation = generation
        self.broken = broken
        self._information = information
        self._contents = contents
        self._made: dict[Choice, Made | str] = {}

    def made(self, identifier: str) -> Made:
        """Raises deploy.expansion.Undescribed."""
        try:
            choice = choose(self._information, identifier)
        except BadMatch as error:
            raise Undescribed(str(error)) from error
        found = self._made.get(choice)
        if found is None:
            found = self._made[choice] = self._make(identifier, choice)
        if isinstance(found, str):
            raise Undescribed(found)
        return found

    def _make(self, identifier: str, choice: Choice) -> Made | str:
        """What it is made from, or why nothing can be made."""
        refs = {kind: references(self._information, choice, kind) for kind in _KINDS}
        code_known = True
        for one in (ref for kind in _KINDS for ref in refs[kind]):
            if error := self._contents[one.url].error:
                if one not in refs["code"] or not one.url.startswith(ELSEWHERE):
                    return f"{one.url}: {error}"
                code_known = False
        try:
            merge("install", self._documents(refs["install"]))
            managent = merge("managent", self._documents(refs["managent"])).configuration
            check_deployable(identifier, refs["code"], managent)
        except Conflict as error:
            return str(error)
        digests = {kind: [self._contents[ref.url].digest for ref in refs[kind]] for kind in _KINDS}
        urls = {kind: tuple(ref.url for ref in refs[kind]) for kind in _KINDS}
        return Made(
            prints(digests["code"], digests["install"], digests["managent"]),
            managent.initiator,
            Sources(urls["code"], urls["install"], urls["managent"]),
            code_known,
        )

    def _documents(self, refs: tuple[Reference, ...]) -> list[ConfigurationDocument]:
        return [document for ref in refs if (document := self._contents[ref.url].document) is not None]


_KINDS: tuple[Kind, ...] = ("code", "install", "managent")
