"""XML documents from anybody, read safely, and written.

Theory of operation. `parse` gives a tree of `Element`s that know where they stood. It is expat, told to give up at
once at anything that could make reading cost more than the document's own bytes, or reach outside it: a DOCTYPE (and
so any entity but XML's own five), another encoding than UTF-8, more than `Limits` allow. Text that is only dots is left
out, as the paper's figures write "..." for "and so on".

The paper's Figures 2 and 12 leave `<pattern …>` and `<ref …>` open, which is not well-formed. `parse` with
`leave_open` reads a document first strictly, and if that fails once more with these elements closed where they are
opened; if that fails too, the error is that of the strict reading.

Whoever knows what a document should say takes it apart with `Element`'s checks: what is not known is an error that
names it and its place.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NoReturn, TypeVar
from xml.parsers import expat

T = TypeVar("T", bound=str)

_DOTS = re.compile(r"[.\s]*\Z")
_DECLARATION = re.compile(rb"<\?xml\s")
_ENCODINGS = ("utf-8", "us-ascii", "ascii")


class BadXml(ValueError):
    """The document is not what it should be: which, where, what was expected, what was found."""

    def __init__(self, document: str, line: int, column: int, text: str) -> None:
        super().__init__(f"{document}, line {line}, column {column}: {text}")
        self.document, self.line, self.column, self.text = document, line, column, text


@dataclass(frozen=True, slots=True)
class Limits:
    """`text_chars`: of one element's text, and of one attribute's value."""

    bytes: int
    elements: int = 10_000
    depth: int = 8
    attributes: int = 12
    text_chars: int = 16_384


@dataclass(slots=True)
class Element:
    """`text`: of this element itself, without the blanks around it. `line` and `column` count from 1."""

    document: str
    name: str
    attributes: dict[str, str]
    line: int
    column: int
    children: list[Element] = field(default_factory=list)
    text: str = ""

    def error(self, text: str) -> BadXml:
        return BadXml(self.document, self.line, self.column, f"<{self.name}>: {text}")

    def expect(self, name: str) -> None:
        if self.name != name:
            raise BadXml(self.document, self.line, self.column, f"expected <{name}>, found <{self.name}>")

    def only(self, *, attributes: Collection[str] = (), children: Collection[str] = (), text: bool = False) -> None:
        """Raises BadXml for what this element may not have."""
        for name in self.attributes:
            if name not in attributes:
                raise self.error(f"expected {_listed('attribute', attributes)}, found attribute {name!r}")
        for child in self.children:
            if child.name not in children:
                expected = f"{_listed('element', children)} in <{self.name}>"
                raise BadXml(self.document, child.line, child.column, f"expected {expected}, found <{child.name}>")
        if self.text and not text:
            raise self.error(f"expected no text, found {self.text[:100]!r}")

    def needs(self, attribute: str) -> str:
        """Its value, which must be there and not empty."""
        value = self.attributes.get(attribute, "")
        if not value:
            found = "an empty one" if attribute in self.attributes else "none"
            raise self.error(f"expected attribute {attribute!r}, found {found}")
        return value

    def one_of(self, attribute: str, values: Sequence[T]) -> T | None:
        """None when it is not given."""
        value = self.attributes.get(attribute)
        if value is None:
            return None
        for known in values:
            if known == value:
                return known
        raise self.error(f"{attribute}: expected {' or '.join(values)}, found {value[:100]!r}")

    def whole(self, attribute: str, low: int, high: int) -> int | None:
        """A whole number from `low` to `high`; None when it is not given."""
        value = self.attributes.get(attribute)
        if value is None:
            return None
        if not value.isascii() or not value.isdecimal() or not low <= int(value[:18]) <= high:
            raise self.error(f"{attribute}: expected a whole number from {low:,} to {high:,}, found {value[:100]!r}")
        return int(value)

    def seconds(self, attribute: str, high: float) -> float | None:
        """A number of seconds from 0 to `high`; None when it is not given."""
        value = self.attributes.get(attribute)
        if value is None:
            return None
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value, re.ASCII) or float(value) > high:
            raise self.error(f"{attribute}: expected a number of seconds from 0 to {high:,.0f}, found {value[:100]!r}")
        return float(value)

    def single(self, name: str) -> Element | None:
        """The child of this name, if there is one; raises BadXml if there are several."""
        found = [child for child in self.children if child.name == name]
        if len(found) > 1:
            raise found[1].error(f"expected one <{name}> in <{self.name}>, found another in line {found[0].line}")
        return found[0] if found else None


def _listed(what: str, names: Collection[str]) -> str:
    return f"{what} {' or '.join(sorted(names))}" if names else f"no {what}"


def parse(data: bytes, document: str, limits: Limits, *, leave_open: Collection[str] = ()) -> Element:
    """The root element. `document`: its name, for errors. `leave_open`: names of elements that never have content, and
    that need not be closed. Raises BadXml."""
    _check_size(data, document, limits)
    try:
        return _Reader(document, limits).read(data)
    except expat.ExpatError as error:
        strict = _not_well_formed(document, error)
    except BadXml as error:  # what is left open holds all that follows, which may be too deep then
        strict = error
    if leave_open:
        names = "|".join(map(re.escape, leave_open))
        with suppress(expat.ExpatError, BadXml):
            return _Reader(document, limits).read(_close(data, names))
    raise strict


def parse_several(data: bytes, document: str, limits: Limits) -> list[Element]:
    """Of documents one after the other, each with an XML declaration of its own, as Figure 9 prints them. `limits` are
    for all of them. Raises BadXml."""
    _check_size(data, document, limits)
    starts = [found.start() for found in _DECLARATION.finditer(data)] or [0]
    if data[: starts[0]].strip():
        starts.insert(0, 0)
    elements = []
    for start, end in zip(starts, [*starts[1:], len(data)], strict=True):
        first_line = data.count(b"\n", 0, start)
        try:
            elements.append(_Reader(document, limits, first_line).read(data[start:end].rstrip()))
        except expat.ExpatError as error:
            raise _not_well_formed(document, error, first_line) from None
    return elements


def _check_size(data: bytes, document: str, limits: Limits) -> None:
    if len(data) > limits.bytes:
        raise BadXml(document, 1, 1, f"expected at most {limits.bytes:,} bytes, found {len(data):,}")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):  # expat would believe it, whatever encoding it is told
        raise BadXml(document, 1, 1, "expected encoding UTF-8, found UTF-16")
    if not data.strip():
        raise BadXml(document, 1, 1, "expected an XML document, found nothing")


def _not_well_formed(document: str, error: expat.ExpatError, first_line: int = 0) -> BadXml:
    found = expat.ErrorString(error.code) or "unknown"
    return BadXml(document, first_line + error.lineno, error.offset + 1, f"expected well-formed XML, found: {found}")


def _close(data: bytes, names: str) -> bytes:
    """Start tags of these elements become empty elements, and their end tags vanish. In comments it does no harm."""
    attribute = rb"""\s+[\w:.-]+\s*=\s*(?:"[^"<]*"|'[^'<]*')"""
    data = re.sub(rb"<(%s)((?:%s)*)\s*>" % (names.encode(), attribute), rb"<\1\2/>", data)
    return re.sub(rb"</(?:%s)\s*>" % names.encode(), b"", data)


class _Reader:
    """One document. Handlers that raise end expat's reading, and what they raise comes out of it."""

    def __init__(self, document: str, limits: Limits, first_line: int = 0) -> None:
        self._document, self._limits, self._first_line = document, limits, first_line
        self._root: Element | None = None
        self._open: list[Element] = []
        self._texts: list[list[str]] = []
        self._chars: list[int] = []
        self._elements = 0
        self._parser = parser = expat.ParserCreate("UTF-8")  # whatever the document says; see _declaration
        parser.buffer_text = True
        parser.XmlDeclHandler = self._declaration
        parser.StartDoctypeDeclHandler = self._doctype
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters

    def read(self, data: bytes) -> Element:
        """Raises BadXml, expat.ExpatError (not well-formed)."""
        try:
            self._parser.Parse(data, True)
        finally:
            # The handlers are bound to this object, which holds the parser: a circle that only a collection would free.
            for handler in ("XmlDecl", "StartDoctypeDecl", "StartElement", "EndElement", "CharacterData"):
                setattr(self._parser, f"{handler}Handler", None)
        assert self._root is not None, "expat accepts no document without a root"
        return self._root

    def _fail(self, text: str) -> NoReturn:
        line, column = self._parser.CurrentLineNumber, self._parser.CurrentColumnNumber
        raise BadXml(self._document, self._first_line + line, column + 1, text)

    def _declaration(self, version: str, encoding: str | None, standalone: int) -> None:
        if encoding is not None and encoding.lower() not in _ENCODINGS:
            self._fail(f"expected encoding UTF-8, found {encoding[:100]!r}")

    def _doctype(self, name: str, system: str | None, public: str | None, internal: bool) -> None:
        self._fail("expected no DOCTYPE (and so no entities but &lt; &gt; &amp; &quot; &apos;), found one")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        limits = self._limits
        self._elements += 1
        if self._elements > limits.elements:
            self._fail(f"expected at most {limits.elements:,} elements, found more")
        if len(self._open) >= limits.depth:
            self._fail(f"expected at most {limits.depth} levels of elements, found <{name[:100]}> in the next")
        if len(attributes) > limits.attributes:
            self._fail(f"<{name[:100]}>: expected at most {limits.attributes} attributes, found {len(attributes)}")
        for key, value in attributes.items():
            if len(value) > limits.text_chars:
                self._fail(f"{key[:100]}: expected at most {limits.text_chars:,} characters, found {len(value):,}")
        line = self._first_line + self._parser.CurrentLineNumber
        element = Element(self._document, name[:200], attributes, line, self._parser.CurrentColumnNumber + 1)
        if self._open:
            self._open[-1].children.append(element)
        else:
            self._root = element
        self._open.append(element)
        self._texts.append([])
        self._chars.append(0)

    def _characters(self, text: str) -> None:
        self._texts[-1].append(text)
        self._chars[-1] += len(text)
        if self._chars[-1] > self._limits.text_chars:
            self._fail(f"expected at most {self._limits.text_chars:,} characters of text in an element, found more")

    def _end(self, name: str) -> None:
        element = self._open.pop()
        pieces = self._texts.pop()
        self._chars.pop()
        # "..." between elements is one piece, or several when a comment parts them; each is left out by itself
        text = "".join(piece for piece in pieces if not _DOTS.match(piece))
        element.text = text.strip()


# --- writing ---------------------------------------------------------------------------------------------------------


_ESCAPES = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\t": "&#9;", "\n": "&#10;", "\r": "&#13;"}
    | dict.fromkeys([*map(chr, [*range(9), 11, 12, *range(14, 32)]), "\ufffe", "\uffff"], "\ufffd")
)
"""What XML cannot say at all becomes U+FFFD: it comes in errors alone, that quote what somebody sent."""


def escape(text: str) -> str:
    return text.translate(_ESCAPES)


def tag(name: str, attributes: Sequence[tuple[str, str]] = (), text: str = "") -> str:
    """One element on a line; attributes that are empty are left out."""
    told = "".join(f' {key}="{escape(value)}"' for key, value in attributes if value)
    return f"<{name}{told}>{escape(text)}</{name}>" if text else f"<{name}{told}/>"
