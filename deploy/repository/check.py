"""`fabric repository check`: everything that is wrong with a directory before anybody is deployed from it.

What is wrong: repository.xml or a document that can't be read, a digest that is not so, and, for the identifiers that
are asked about, documents that contradict each other or nothing that matches. What is only strange: documents that
nothing refers to, and patterns that none of these identifiers matches.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deploy.documents import KINDS, ConfigurationDocument, Entry, Kind
from deploy.identity import BadIdentity, check_path
from deploy.matching import BadMatch, Conflict, Given, check_deployable, givens, merge
from deploy.patterns import PatternTimeout
from deploy.repository.files import BadFolder, files_below
from deploy.repository.folder import INFORMATION, Folder, Snapshot

BASE = "http://localhost/"
"""Stands for where the directory will be served; only what is relative, or below it, is looked for."""


@dataclass(frozen=True, slots=True)
class Unmatched:
    kind: Kind
    entry: int
    pattern: str


@dataclass(frozen=True, slots=True)
class Checked:
    """`generation` is "" when the directory is broken. `elsewhere`: references to other places, which nobody looked at.
    `identifiers`: what is wrong with each that was asked about, or ""."""

    generation: str
    problems: tuple[str, ...]
    unused: tuple[str, ...] = ()
    unmatched: tuple[Unmatched, ...] = ()
    elsewhere: tuple[str, ...] = ()
    identifiers: tuple[tuple[str, str], ...] = ()

    @property
    def good(self) -> bool:
        return not self.problems and not any(wrong for _, wrong in self.identifiers)


def check(root: Path, identifiers: tuple[str, ...], base: str = BASE) -> Checked:
    """Blocks: reads all of it."""
    folder = Folder(root, base)
    try:
        snapshot = folder.look()
    except BadFolder as error:
        return Checked("", error.problems)
    used = {INFORMATION, *snapshot.documents}
    entries = [entry for kind in KINDS for entry in snapshot.information.entries(kind)]
    elsewhere = {ref.url for entry in entries for ref in entry.refs} - set(snapshot.contents)
    return Checked(
        generation=snapshot.generation,
        problems=(),
        unused=tuple(path for path in files_below(folder.root) if path not in used),
        unmatched=_unmatched(entries, identifiers) if identifiers else (),
        elsewhere=tuple(sorted(elsewhere)),
        identifiers=tuple((identifier, _wrong(snapshot, identifier)) for identifier in identifiers),
    )


def _unmatched(entries: list[Entry], identifiers: tuple[str, ...]) -> tuple[Unmatched, ...]:
    def matched(entry: Entry, index: int) -> bool:
        try:
            return any(entry.patterns[index].matches(identifier) for identifier in identifiers)
        except PatternTimeout:
            return True  # told of the identifier, as an error

    return tuple(
        Unmatched(entry.kind, entry.number, str(pattern))
        for entry in entries
        for index, pattern in enumerate(entry.patterns)
        if not matched(entry, index)
    )


def _wrong(snapshot: Snapshot, identifier: str) -> str:
    try:
        given = givens(snapshot.information, check_path(identifier))
        merge("install", _documents(snapshot, given, "install"))
        role = merge("managent", _documents(snapshot, given, "managent")).configuration
        if all(one.reference.url in snapshot.contents for one in given if one.kind == "managent"):
            check_deployable(identifier, [one for one in given if one.kind == "code"], role)
    except (BadIdentity, BadMatch, Conflict) as error:
        return str(error)
    return ""


def _documents(snapshot: Snapshot, given: tuple[Given, ...], kind: Kind) -> list[ConfigurationDocument]:
    """Those that are here."""
    contents = [snapshot.contents.get(one.reference.url) for one in given if one.kind == kind]
    return [content.document for content in contents if content is not None and content.document is not None]
