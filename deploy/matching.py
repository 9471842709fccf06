"""What a repository gives to one managent, and why: matching, merging, fingerprints. Pure.

Theory of operation. An identifier is matched against the entries of each list in their order; an entry matches when
one of its patterns does, and gives all its references (HPL-2001-321, 2.2). `choose` says only which entries matched:
there are few such choices however many managents there are, so all that follows from one (references, replies, merged
configurations, fingerprints) is worked out once and kept by it.

Configuration documents of one list merge in the order of their references, and the later one wins, name by name and
attribute by attribute; a later document's `<children>` replace the earlier's as a whole. A start command is the
exception: two documents that give different ones contradict each other, and are an error. `Merged` keeps for every
value the document that gave it and those that were overridden; `explain` adds the entry and the pattern.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, TypeVar

from blake3 import blake3

from deploy.configuration import Children, Configuration, InitiatorRole, ProgramRole
from deploy.documents import (
    KINDS,
    ConfigurationDocument,
    Entry,
    Information,
    InitiatorPart,
    Kind,
    ProgramPart,
    Reference,
)
from deploy.patterns import Pattern, PatternTimeout
from deploy.records import Prints

P = TypeVar("P", InitiatorPart, ProgramPart)


class BadMatch(Exception):
    """Whether an entry matches cannot be said: which entry, which pattern, and why."""


class Conflict(Exception):
    """Documents that do not go together, or one that cannot be where it is: which ones, and in what."""


class Choice(NamedTuple):
    """Indices of the entries that match, by list. Managents with the same choice get the same."""

    code: tuple[int, ...]
    install: tuple[int, ...]
    managent: tuple[int, ...]


def choose(information: Information, identifier: str) -> Choice:
    """Which entries match. Raises BadMatch."""
    return Choice(
        _matching(information.code, identifier),
        _matching(information.install, identifier),
        _matching(information.managent, identifier),
    )


def _matching(entries: Sequence[Entry], identifier: str) -> tuple[int, ...]:
    found = []
    for index, entry in enumerate(entries):
        if matching_pattern(entry, identifier) is not None:
            found.append(index)
    return tuple(found)


def matching_pattern(entry: Entry, identifier: str) -> Pattern | None:
    """The first of its patterns that matches. Raises BadMatch."""
    try:
        for pattern in entry.patterns:
            if pattern.matches(identifier):
                return pattern
    except PatternTimeout as error:
        raise BadMatch(f"{entry}: {error}") from None
    return None


def references(information: Information, choice: Choice, kind: Kind) -> tuple[Reference, ...]:
    """Of all chosen entries, in order."""
    entries = information.entries(kind)
    indices: tuple[int, ...] = getattr(choice, kind)
    return tuple(ref for index in indices for ref in entries[index].refs)


@dataclass(frozen=True, slots=True)
class Content:
    """What a reference gave. `error`: why it gave nothing. `document`: of configuration references alone."""

    digest: str = ""
    document: ConfigurationDocument | None = None
    error: str = ""


# --- merging ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Setting:
    """`name`: "env TMP_DIR", "arg PORT", "initiator parallel", "initiator children", "managent start", …
    `by`: index of the document whose value it is. `overridden`: (value, index of the document), the oldest first."""

    name: str
    value: str
    by: int
    overridden: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Merged:
    configuration: Configuration
    settings: tuple[Setting, ...]


def merge(kind: Kind, documents: Sequence[ConfigurationDocument]) -> Merged:
    """All documents of one list for one managent, in order. Raises Conflict."""
    given: dict[str, list[tuple[str, int]]] = {}
    env: dict[str, str] = {}
    args: dict[str, str] = {}
    initiator: InitiatorPart | None = None
    program = ProgramPart()
    for index, document in enumerate(documents):
        if kind != "managent" and (document.initiator or document.program):
            found = "initiator" if document.initiator else "managent"
            raise Conflict(f"{document.name}: expected <{found}> in managent-config alone, found it in install-config")
        env.update(document.env)
        args.update(document.args)
        for name, value in _told(document):
            given.setdefault(name, []).append((value, index))
        if document.initiator is not None:
            initiator = _over(initiator or InitiatorPart(), document.initiator)
        program = _over(program, document.program or ProgramPart())
    settings = tuple(Setting(name, *values[-1], tuple(values[:-1])) for name, values in given.items())
    _check_starts(settings, documents)
    return Merged(Configuration(env, args, _role(initiator, documents), _program(program)), settings)


def _told(document: ConfigurationDocument) -> list[tuple[str, str]]:
    """Everything that a document says, as (setting's name, value for people)."""
    told = [(f"env {name}", value) for name, value in document.env]
    told += [(f"arg {name}", value) for name, value in document.args]
    for element, part in (("initiator", document.initiator), ("managent", document.program)):
        for one in fields(part) if part is not None else ():
            value = getattr(part, one.name)
            if value not in (None, ()):
                told.append((f"{element} {_ATTRIBUTES.get(one.name, one.name)}", _shown(value)))
    if document.initiator == InitiatorPart():
        told.append(("initiator", "yes"))
    return told


_ATTRIBUTES = {"lease_s": "lease", "stop_s": "stop", "class_name": "class"}
"""What a field is called in a document, where that is something else."""


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(_children(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _children(children: Children) -> str:
    if children.by == "count":
        return f"{children.count} from {children.prefix}{children.first}"
    if children.by == "names":
        return " ".join(children.names[:10]) + (f" and {len(children.names) - 10} more" if children.names[10:] else "")
    return f"each {children.by}"


def _over(earlier: P, later: P) -> P:
    said = {one.name: value for one in fields(later) if (value := getattr(later, one.name)) not in (None, ())}
    return replace(earlier, **said)


def _check_starts(settings: Sequence[Setting], documents: Sequence[ConfigurationDocument]) -> None:
    for setting in settings:
        if setting.name in ("managent start", "initiator start"):
            for value, index in setting.overridden:
                if value != setting.value:
                    raise Conflict(
                        f"{setting.name}: expected one start command, found {value!r} in {documents[index].name} "
                        f"and {setting.value!r} in {documents[setting.by].name}"
                    )


def _role(part: InitiatorPart | None, documents: Sequence[ConfigurationDocument]) -> InitiatorRole | None:
    if part is None:
        return None
    if not part.children:
        names = ", ".join(document.name for document in documents if document.initiator is not None)
        raise Conflict(f"{names}: expected <children> in <initiator>, found none")
    if part.scope == "relative" and not part.repository:
        names = ", ".join(document.name for document in documents if document.initiator is not None)
        raise Conflict(f'{names}: expected a repository with scope="relative", found none')
    default = InitiatorRole(())
    return InitiatorRole(
        children=part.children,
        parallel=default.parallel if part.parallel is None else part.parallel,
        repository=part.repository or "",
        scope=part.scope or default.scope,
        failover=part.failover or default.failover,
        lease_s=default.lease_s if part.lease_s is None else part.lease_s,
        start=part.start or "",
        retries=default.retries if part.retries is None else part.retries,
        restart=part.restart or default.restart,
    )


def _program(part: ProgramPart) -> ProgramRole:
    default = ProgramRole()
    return ProgramRole(
        control=part.control or default.control,
        class_name=part.class_name or "",
        start=part.start or "",
        stop_s=default.stop_s if part.stop_s is None else part.stop_s,
    )


def check_deployable(path: str, code: Sequence[object], managent: Configuration) -> None:
    """A managent needs code, or the role of an initiator; raises Conflict when it has neither."""
    if not code and managent.initiator is None:
        raise Conflict(
            f"{path}: expected an entry of managent-code that matches, or the configuration of an initiator, "
            "found neither; see: fabric managent explain"
        )


# --- fingerprints ----------------------------------------------------------------------------------------------------


def prints(code: Iterable[str], install: Iterable[str], managent: Iterable[str]) -> Prints:
    """From the contents' digests ("blake3:…") in order, by list."""
    return Prints(fingerprint(code), fingerprint(install), fingerprint(managent))


def fingerprint(digests: Iterable[str]) -> str:
    """16 hexadecimal digits; "" for no digests."""
    told = "\n".join(digests)
    return blake3(told.encode()).hexdigest(length=8) if told else ""


def with_told(found: Prints, start: str, lease_s: float) -> Prints:
    """What the initiator tells is part of it too: the start command, and the lease that the boot stub keeps. Where one
    of these changes, the managent is another one, though no document of its own is."""
    told = [*([f"start {start}"] if start else []), *([f"lease {lease_s:g}"] if lease_s else [])]
    return Prints(found.code, found.install, fingerprint([found.managent, *told])) if told else found


# --- explaining ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Given:
    """One reference that a managent gets, by which entry and which of its patterns."""

    kind: Kind
    entry: int
    pattern: Pattern
    reference: Reference


@dataclass(frozen=True, slots=True)
class Explained:
    """`settings` say by index which of `given` of their kind they come from."""

    identifier: str
    given: tuple[Given, ...]
    install: Merged
    managent: Merged

    def of(self, kind: Kind) -> tuple[Given, ...]:
        return tuple(one for one in self.given if one.kind == kind)


def givens(information: Information, identifier: str) -> tuple[Given, ...]:
    """All that match, list by list, in order. Raises BadMatch."""
    found = []
    for kind in KINDS:
        for entry in information.entries(kind):
            pattern = matching_pattern(entry, identifier)
            if pattern is not None:
                found += [Given(kind, entry.number, pattern, ref) for ref in entry.refs]
    return tuple(found)


def explain(
    information: Information, identifier: str, document_of: Callable[[Reference], ConfigurationDocument]
) -> Explained:
    """`document_of` gives the document that a reference of install-config or managent-config refers to. Raises
    BadMatch, Conflict, and what `document_of` raises."""
    given = givens(information, identifier)

    def merged(kind: Kind) -> Merged:
        return merge(kind, [document_of(one.reference) for one in given if one.kind == kind])

    return Explained(identifier, given, merged("install"), merged("managent"))
