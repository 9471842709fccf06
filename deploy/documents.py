"""The documents of repositories (HPL-2001-321, 2.2): repository information (Figures 2, 12), configuration (3).

    <repository-information>                             <configuration>
      <managent-code>                                      <env-params> <env name="TMP_DIR" value="/tmp"/> </env-params>
        <entry>                                            <arg-params> <arg name="PORT" value="7078"/> </arg-params>
          <pattern path="*/dc_paloalto/*"/>                <initiator parallel="32" retries="3">
          <pattern xpath="/**/**/**"/>                       <children count="10" prefix="zone"/>
          <ref url="http://sos/all.sh" type="script"/>     </initiator>
        </entry>                                           <managent control="bmp" start="./run"/>
      </managent-code>                                   </configuration>
      <install-config> … </install-config>
      <managent-config> … </managent-config>
    </repository-information>

Reading is strict: an element, attribute or value that is not known here is a BadXml that says where it stands, what was
expected and what was found. What a configuration document does not say is None, so that a later document changes only
what it says (deploy.matching merges). Requests and replies about them are in deploy.brp.

`<children>` is one of: count="10" prefix="zone" first="1"; names="alpha beta gamma"; each="stub"; each="domain".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from deploy.configuration import Children, Control, Failover, Restart, Scope
from deploy.identity import BadIdentity, check_part
from deploy.patterns import PATTERN_KINDS, BadPattern, Pattern
from deploy.records import MAX_CHILDREN
from deploy.xml import Element, Limits, parse, tag

Kind = Literal["code", "install", "managent"]
"""The three lists of a repository."""

KINDS: tuple[Kind, ...] = ("code", "install", "managent")
ELEMENTS: dict[str, Kind] = {"managent-code": "code", "install-config": "install", "managent-config": "managent"}

CODE_TYPES = ("script", "executable", "tar", "python", "java")
"""What a code reference's `type` may say; without it the boot stub recognises the content."""

INFORMATION_LIMITS = Limits(bytes=1 << 20, elements=10_000, depth=64, attributes=3, text_chars=2_000)
CONFIGURATION_LIMITS = Limits(bytes=1 << 18, elements=5_000, depth=3, attributes=8, text_chars=16_384)
SCOPES: tuple[Scope, ...] = ("full", "relative")
FAILOVERS: tuple[Failover, ...] = ("none", "domain")
RESTARTS: tuple[Restart, ...] = ("always", "never")
CONTROLS: tuple[Control, ...] = ("signals", "bmp")
EACH: tuple[Literal["stub", "domain"], ...] = ("stub", "domain")
MAX_URL_CHARS = 2_000
MAX_VALUE_CHARS = 4_000
MAX_PARAMS = 1_000
MAX_FIRST = 1_000_000_000
MAX_PARALLEL = 1_000
MAX_RETRIES = 20
MAX_LEASE_S = 86_400.0
MAX_STOP_S = 3_600.0
RESERVED_ENV = "MANAGENT_"
"""The boot stub's own variables begin like this."""

_DIGEST = re.compile(r"(?:blake3|sha256):[0-9a-f]{64}", re.ASCII)
_URL = re.compile(r"[!-~]+", re.ASCII)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):", re.ASCII)
SCHEMES = ("http", "https", "file", "image")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)
_ARG_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}", re.ASCII)


# --- repository information ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reference:
    """`digest`: "blake3:…" or "sha256:…" of the content, or "". `type`: one of CODE_TYPES, or ""."""

    url: str
    digest: str = ""
    type: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """`number`: its place in its list, from 1. It matches when one of its patterns does."""

    kind: Kind
    number: int
    patterns: tuple[Pattern, ...]
    refs: tuple[Reference, ...]

    def __str__(self) -> str:
        return f"{_ELEMENT_OF[self.kind]} entry {self.number}"


@dataclass(frozen=True, slots=True)
class Information:
    code: tuple[Entry, ...] = ()
    install: tuple[Entry, ...] = ()
    managent: tuple[Entry, ...] = ()

    def entries(self, kind: Kind) -> tuple[Entry, ...]:
        entries: tuple[Entry, ...] = getattr(self, kind)
        return entries


_ELEMENT_OF: dict[Kind, str] = {kind: element for element, kind in ELEMENTS.items()}


def read_information(data: bytes, document: str) -> Information:
    """`document`: its name, for errors. Raises BadXml."""
    root = parse(data, document, INFORMATION_LIMITS, leave_open=("pattern", "ref"))
    root.expect("repository-information")
    root.only(children=ELEMENTS)
    lists: dict[Kind, tuple[Entry, ...]] = {}
    for name, kind in ELEMENTS.items():
        element = root.single(name)
        if element is not None:
            element.only(children=("entry",))
            lists[kind] = tuple(_entry(child, kind, number) for number, child in enumerate(element.children, 1))
    return Information(**lists)


def write_information(information: Information) -> bytes:
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', "<repository-information>"]
    for name, kind in ELEMENTS.items():
        lines.append(f"  <{name}>")
        for entry in information.entries(kind):
            lines.append("    <entry>")
            lines += [f"      {tag('pattern', [(pattern.kind, pattern.text)])}" for pattern in entry.patterns]
            lines += [f"      {_written(ref)}" for ref in entry.refs]
            lines.append("    </entry>")
        lines.append(f"  </{name}>")
    return "\n".join([*lines, "</repository-information>", ""]).encode()


def _written(ref: Reference) -> str:
    return tag("ref", [("url", ref.url), ("type", ref.type), ("digest", ref.digest)])


def _entry(element: Element, kind: Kind, number: int) -> Entry:
    element.only(children=("pattern", "ref"))
    patterns = tuple(_pattern(child, number) for child in element.children if child.name == "pattern")
    refs = tuple(_reference(child, kind) for child in element.children if child.name == "ref")
    if not patterns or not refs:
        missing = "pattern" if not patterns else "ref"
        raise element.error(f"entry {number}: expected at least one <{missing}>, found none")
    return Entry(kind, number, patterns, refs)


def _pattern(element: Element, number: int) -> Pattern:
    element.only(attributes=PATTERN_KINDS)
    given = [kind for kind in PATTERN_KINDS if kind in element.attributes]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise element.error(f"entry {number}: expected one attribute of path, xpath, regex, found {found}")
    try:
        return Pattern(given[0], element.attributes[given[0]])
    except BadPattern as error:
        raise element.error(f"entry {number}: {error}") from None


def _reference(element: Element, kind: Kind) -> Reference:
    element.only(attributes=("url", "digest", "type"))
    return reference(element, element.needs("url"), element.attributes.get("type"), kind)


def reference(element: Element, url: str, type: str | None, kind: Kind) -> Reference:
    """What stands in `element`, whose url and type are given. Raises BadXml."""
    if len(url) > MAX_URL_CHARS or not _URL.fullmatch(url):
        raise element.error(
            f"expected a URL of at most {MAX_URL_CHARS:,} printable ASCII characters, found {url[:100]!r}"
        )
    scheme = _SCHEME.match(url)
    if scheme is not None and scheme[1] not in SCHEMES:
        raise element.error(f"expected a relative URL or one of {', '.join(SCHEMES)}, found {url[:100]!r}")
    digest = element.attributes.get("digest", "")
    if digest and not _DIGEST.fullmatch(digest):
        raise element.error(
            f"digest: expected blake3: or sha256: and 64 hexadecimal digits in lower case, found {digest[:100]!r}"
        )
    if type is not None and kind != "code":
        raise element.error(f"expected a type for code alone, found {type[:100]!r}")
    if type is not None and type not in CODE_TYPES:
        raise element.error(f"type: expected {' or '.join(CODE_TYPES)}, found {type[:100]!r}")
    return Reference(url, digest, type or "")


# --- configuration ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InitiatorPart:
    """What one document says of the initiator's role; None and (): nothing."""

    children: tuple[Children, ...] = ()
    parallel: int | None = None
    repository: str | None = None
    scope: Scope | None = None
    failover: Failover | None = None
    lease_s: float | None = None
    start: str | None = None
    retries: int | None = None
    restart: Restart | None = None


@dataclass(frozen=True, slots=True)
class ProgramPart:
    """What one document says of the program; None: nothing."""

    control: Control | None = None
    class_name: str | None = None
    start: str | None = None
    stop_s: float | None = None


@dataclass(frozen=True, slots=True)
class ConfigurationDocument:
    """`env` and `args`: (name, value) in the document's order, each name once."""

    name: str
    env: tuple[tuple[str, str], ...] = ()
    args: tuple[tuple[str, str], ...] = ()
    initiator: InitiatorPart | None = None
    program: ProgramPart | None = None


def read_configuration(data: bytes, document: str) -> ConfigurationDocument:
    """`document`: its name, for errors and for telling what came from where. Raises BadXml."""
    root = parse(data, document, CONFIGURATION_LIMITS)
    root.expect("configuration")
    root.only(children=("env-params", "arg-params", "initiator", "managent"))
    initiator, program = root.single("initiator"), root.single("managent")
    return ConfigurationDocument(
        document,
        _params(root.single("env-params"), "env", _ENV_NAME),
        _params(root.single("arg-params"), "arg", _ARG_NAME),
        None if initiator is None else _initiator(initiator),
        None if program is None else _program(program),
    )


def _params(element: Element | None, kind: str, names: re.Pattern[str]) -> tuple[tuple[str, str], ...]:
    if element is None:
        return ()
    element.only(children=(kind,))
    if len(element.children) > MAX_PARAMS:
        raise element.error(f"expected at most {MAX_PARAMS:,} parameters, found {len(element.children):,}")
    found: dict[str, str] = {}
    for child in element.children:
        child.only(attributes=("name", "value"))
        name = child.needs("name")
        if not names.fullmatch(name):
            raise child.error(f"name: expected {names.pattern}, found {name[:100]!r}")
        if kind == "env" and name.startswith(RESERVED_ENV):
            raise child.error(f"name: expected one that does not begin with {RESERVED_ENV}, found {name!r}")
        if name in found:
            raise child.error(f"expected each name once in a document, found {name!r} again")
        value = child.attributes.get("value")
        if value is None:
            raise child.error(f"expected attribute 'value' (it may be empty), found none for {name!r}")
        if len(value) > MAX_VALUE_CHARS:
            raise child.error(f"{name}: expected at most {MAX_VALUE_CHARS:,} characters, found {len(value):,}")
        found[name] = value
    return tuple(found.items())


def _initiator(element: Element) -> InitiatorPart:
    names = ("parallel", "repository", "scope", "failover", "lease", "start", "retries", "restart")
    element.only(attributes=names, children=("children",))
    repository = element.attributes.get("repository")
    if repository is not None and not re.match(r"https?://[!-~]+\Z", repository[: MAX_URL_CHARS + 1], re.ASCII):
        raise element.error(f"repository: expected an http or https URL, found {repository[:100]!r}")
    children = tuple(_children(child) for child in element.children)
    _check_children(element, children)
    return InitiatorPart(
        children=children,
        parallel=element.whole("parallel", 1, MAX_PARALLEL),
        repository=repository,
        scope=element.one_of("scope", SCOPES),
        failover=element.one_of("failover", FAILOVERS),
        lease_s=element.seconds("lease", MAX_LEASE_S),
        start=_command(element),
        retries=element.whole("retries", 0, MAX_RETRIES),
        restart=element.one_of("restart", RESTARTS),
    )


def _command(element: Element) -> str | None:
    command = element.attributes.get("start")
    if command is not None and not 1 <= len(command.strip()) <= MAX_URL_CHARS:
        raise element.error(f"start: expected a command of 1 to {MAX_URL_CHARS:,} characters, found {len(command):,}")
    return command


def _children(element: Element) -> Children:
    element.only(attributes=("count", "prefix", "first", "names", "each"))
    ways = [way for way in ("count", "names", "each") if way in element.attributes]
    if len(ways) != 1:
        raise element.error(f"expected one attribute of count, names, each, found {' and '.join(ways) or 'none'}")
    for name in ("prefix", "first"):
        if name in element.attributes and ways != ["count"]:
            raise element.error(f"{name}: expected with count alone, found with {ways[0]}")
    each = element.one_of("each", EACH)
    if each is not None:
        return Children(each)
    try:
        if ways == ["names"]:
            return Children("names", names=tuple(check_part(part) for part in element.attributes["names"].split()))
        count = element.whole("count", 0, MAX_CHILDREN) or 0
        first = element.whole("first", 0, MAX_FIRST)
        prefix = element.attributes.get("prefix", "")
        children = Children("count", count=count, first=1 if first is None else first, prefix=prefix)
        check_part(f"{prefix}{children.first + count}")
        return children
    except BadIdentity as error:
        raise element.error(str(error)) from None


def _check_children(element: Element, children: tuple[Children, ...]) -> None:
    """What can be known without a directory: how many there are, and that no name comes twice."""
    total = sum(one.count + len(one.names) for one in children)
    if total > MAX_CHILDREN:
        raise element.error(f"expected at most {MAX_CHILDREN:,} children, found {total:,}")
    seen: set[str] = set()
    for one, child in zip(children, element.children, strict=True):
        numbered = (f"{one.prefix}{number}" for number in range(one.first, one.first + one.count))
        for name in (*one.names, *numbered):
            if name in seen:
                raise child.error(f"expected each child's name once, found {name!r} again")
            seen.add(name)


def _program(element: Element) -> ProgramPart:
    element.only(attributes=("control", "class", "start", "stop"))
    class_name = element.attributes.get("class")
    if class_name is not None and not all(part.isidentifier() for part in class_name[:500].split(".")):
        raise element.error(f"class: expected a Python class's name, found {class_name[:100]!r}")
    return ProgramPart(
        control=element.one_of("control", CONTROLS),
        class_name=class_name,
        start=_command(element),
        stop_s=element.seconds("stop", MAX_STOP_S),
    )
