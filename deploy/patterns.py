"""Patterns of managents' identifiers: the three of repository entries (HPL-2001-321, 2.2, 5.3), and that of commands.

Theory of operation. A pattern is compiled once, to a regular expression, and matched often. `path` and `xpath` become
expressions whose every run is atomic, so that they match in time linear in the identifier whatever is written in them;
`regex` is the author's own and may be anything, so it is bounded: in length, in what its repeats unfold to, and in
time at every match.

- `path="…"`: `*` stands for any run of characters, slashes too; all else for itself; the whole identifier must match.
  A leading `*/` also matches the start of the identifier and a trailing `/*` also its end: `*/customer_x/*`,
  `*/dc_paloalto/*` and `*/cluster*/*` all match /hp_mgmt_domain/dc_paloalto/cluster_21/customer_x (Figure 2).
- `xpath="…"`: level by level; a part `/*` or `/**` is exactly one level (Figure 12), any other part stands for itself
  except that a `*` within it is any run without a slash: /site/rack*/**.
- `regex="…"`: a regular expression (package `regex`) for the whole identifier. One that needs more than `MATCH_S` is an
  error, not "no match".

Commands to a part of the tree (`fabric managent deactivate '/region1/zone3/**'`) take a `CommandPattern`. It is written
like an xpath, but people mean a subtree by a last `/**`: that managent and everything below it, however deep. One
level is `*` there, and `**` in any other place than the end is an error.
"""

from __future__ import annotations

import re
from typing import Literal, Protocol

from deploy.identity import MAX_DEPTH

PatternKind = Literal["path", "xpath", "regex"]
PATTERN_KINDS: tuple[PatternKind, ...] = ("path", "xpath", "regex")
MAX_PATTERN_CHARS = 512
MAX_REPEATS = 10_000
"""The product of all numbers in a regular expression's braces: what its repeats unfold to when it is compiled."""
MATCH_S = 0.1


class BadPattern(ValueError):
    """Nobody can match this pattern: what was expected, what was found, and where in it."""


class PatternTimeout(Exception):
    """Matching took longer than `MATCH_S`: whether it matches is not known."""


class _Compiled(Protocol):
    def fullmatch(self, identifier: str) -> object: ...


class Pattern:
    """One `<pattern>`. Raises BadPattern. Two are equal when they are written alike."""

    __slots__ = ("_compiled", "kind", "text")

    def __init__(self, kind: PatternKind, text: str) -> None:
        _check_size(kind, text)
        self.kind = kind
        self.text = text
        self._compiled: _Compiled
        if kind == "path":
            self._compiled = re.compile(_path(text), re.DOTALL)
        elif kind == "xpath":
            self._compiled = re.compile(_xpath(text))
        else:
            self._compiled = _Bounded(text)

    def matches(self, identifier: str) -> bool:
        """`identifier` begins with a slash. Raises PatternTimeout, and only for kind "regex"."""
        return self._compiled.fullmatch(identifier) is not None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and (self.kind, self.text) == (other.kind, other.text)

    def __hash__(self) -> int:
        return hash((self.kind, self.text))

    def __str__(self) -> str:
        return f'{self.kind}="{self.text}"'

    def __repr__(self) -> str:
        return f"Pattern({self.kind!r}, {self.text!r})"


def _check_size(kind: str, text: str) -> None:
    if not text or len(text) > MAX_PATTERN_CHARS:
        raise BadPattern(f"{kind}: expected a pattern of 1 to {MAX_PATTERN_CHARS} characters, found {len(text)}")


# --- path ------------------------------------------------------------------------------------------------------------


def _path(text: str) -> str:
    """Identifiers begin with a slash, so that a leading `*/` matches their start is only natural: `*` is empty then.
    A trailing `/*` that also matches the end is an end of the part before: (?=/|\\Z)."""
    if text[0] not in "/*":
        raise BadPattern(f"path={text!r}: expected one that begins with '/' or '*', as identifiers begin with '/'")
    trailing = text.endswith("/*")
    first, *others = (text[:-2] if trailing else text).split("*")
    if not trailing:
        return _runs(first, others)
    if not others:
        return rf"{re.escape(first)}(?:/.*)?"
    *middle, last = others
    atoms = "".join(_atom(".", part) for part in middle)
    return rf"{re.escape(first)}{atoms}(?>.*?{re.escape(last)}(?=/|\Z)).*"


def _runs(first: str, others: list[str], character: str = ".") -> str:
    """`first`, then runs of `character` each followed by one of `others`, the last of which ends it all. Taking each
    of the middle ones where it comes first is right, as more is left for the others then; so it need not be tried
    again elsewhere (atomic groups)."""
    if not others:
        return re.escape(first)
    *middle, last = others
    return f"{re.escape(first)}{''.join(_atom(character, part) for part in middle)}{character}*{re.escape(last)}"


def _atom(character: str, part: str) -> str:
    return f"(?>{character}*?{re.escape(part)})" if part else ""


# --- xpath -----------------------------------------------------------------------------------------------------------


def _xpath(text: str) -> str:
    return "".join(f"/{_level(part)}" for part in _parts("xpath", text))


def _parts(kind: str, text: str) -> list[str]:
    if text[0] != "/":
        raise BadPattern(f"{kind}={text!r}: expected a pattern that begins with '/', found {text[0]!r}")
    parts = text[1:].split("/")
    if "" in parts:
        raise BadPattern(f"{kind}={text!r}: expected parts between slashes, found none in part {parts.index('') + 1}")
    if len(parts) > MAX_DEPTH:
        raise BadPattern(f"{kind}={text!r}: expected at most {MAX_DEPTH} levels, found {len(parts)}")
    return parts


def _level(part: str) -> str:
    if part in ("*", "**"):
        return "[^/]+"
    first, *others = part.split("*")
    return _runs(first, others, "[^/]")


# --- regex -----------------------------------------------------------------------------------------------------------

_BRACES = re.compile(r"\{[^{}]*\}")
_NUMBER = re.compile(r"[0-9]+")


class _Bounded:
    """`re` cannot be stopped while it matches, `regex` can. It is imported by those alone who have such a pattern."""

    __slots__ = ("_compiled", "_text", "_too_long")

    def __init__(self, text: str) -> None:
        import regex

        unfolded = 1
        for braces in _BRACES.finditer(text):
            for number in _NUMBER.findall(braces[0]):
                unfolded *= max(1, int(number[:9]))
            if unfolded > MAX_REPEATS:
                raise BadPattern(
                    f"regex={text!r}: expected numbers in braces whose product is at most {MAX_REPEATS}, "
                    f"found more at position {braces.start()}"
                )
        try:
            self._compiled = regex.compile(text)
        except regex.error as error:
            where = "" if error.pos is None else f" at position {error.pos}"
            raise BadPattern(f"regex={text!r}: expected a regular expression: {error.msg}{where}") from None
        except RecursionError:
            raise BadPattern(f"regex={text!r}: expected groups that are less deeply nested") from None
        self._text = text

    def fullmatch(self, identifier: str) -> object:
        try:
            return self._compiled.fullmatch(identifier, timeout=MATCH_S)
        except (TimeoutError, MemoryError, RecursionError):
            raise PatternTimeout(
                f"regex={self._text!r}: expected to know within {MATCH_S:g} s whether it matches {identifier}; "
                "can it be written without repeats within repeats?"
            ) from None


# --- commands --------------------------------------------------------------------------------------------------------


class CommandPattern:
    """Which managents of a tree a command is for. Raises BadPattern.

    - `/region1/zone3`: this managent alone;
    - `/region1/*/dc6`, `/site/rack*/node1`: level by level, as xpath;
    - `/region1/zone3/**`: /region1/zone3 and everything below it; `/**`: all.
    """

    __slots__ = ("_deep", "_levels", "text")

    def __init__(self, text: str) -> None:
        _check_size("pattern", text)
        parts = _parts("pattern", text)
        self._deep = parts[-1] == "**"
        if self._deep:
            parts.pop()
        if "**" in parts:
            raise BadPattern(f"pattern {text!r}: expected '**' at the end alone (a subtree); write '*' for one level")
        self._levels = tuple(re.compile(_level(part)) for part in parts)
        self.text = text

    def matches(self, path: str) -> bool:
        """Is the command for this managent? Not for the top, "": that is no managent."""
        parts = path[1:].split("/")
        count = len(self._levels)
        if not path or len(parts) < count or (len(parts) > count and not self._deep):
            return False
        return self._begins(parts)

    def may_match_below(self, path: str) -> bool:
        """May it be for a managent below `path`, itself left aside? "" is the top, above all. False is certain: nobody
        there need be asked."""
        parts = path[1:].split("/") if path else []
        return (self._deep or len(parts) < len(self._levels)) and self._begins(parts)

    def _begins(self, parts: list[str]) -> bool:
        return all(level.fullmatch(part) for level, part in zip(self._levels, parts, strict=False))

    def __str__(self) -> str:
        return self.text
