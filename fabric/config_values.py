"""Values of a configuration: what each kind of value looks like, read strictly from TOML or from text.

Theory of operation. A `Kind` knows what it expects (`expected`, for people) and reads one value: typed, as TOML has it
(`textual=False`: 5 is a number, "5" is not), or as text, as environment variables and flags have it. It answers with
the value or raises ValueError whose text is what was found. `ConfigError` puts both together with the place it came
from; it is the only error that configuration ends in, one line, and never shows a secret.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

MAX_SHOWN_CHARS = 60
_SECRET = re.compile(r"[0-9A-Fa-f]{32,}")
_SIZE = re.compile(r"(\d{1,15}) ?(B|KiB|MiB|GiB|TiB)")
_UNITS = {"B": 0, "KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40}
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]", re.ASCII)


class ConfigError(Exception):
    """The configuration is wrong: where (file, variable or flag), which key, what was expected, what was found."""


def shown(value: object) -> str:
    """`value` for an error: short, on one line, and not if it may be a secret in the wrong place."""
    if isinstance(value, str) and _SECRET.search(value):
        return f"a text of {len(value)} characters that may be a secret"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 1] + "…"


def suggestion(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""


class Kind(Protocol):
    @property
    def expected(self) -> str: ...

    def read(self, value: object, textual: bool) -> Any: ...


@dataclass(frozen=True, slots=True)
class Text:
    """A text that matches `pattern` as a whole, of at most `max_chars`."""

    expected: str = "a text"
    pattern: str = r"[^\x00-\x1f]+"
    max_chars: int = 1024

    def read(self, value: object, textual: bool) -> str:
        if not isinstance(value, str) or len(value) > self.max_chars or not re.fullmatch(self.pattern, value):
            raise ValueError(shown(value))
        return value


@dataclass(frozen=True, slots=True)
class Choice:
    words: tuple[str, ...]

    @property
    def expected(self) -> str:
        return " or ".join(f'"{word}"' for word in self.words)

    def read(self, value: object, textual: bool) -> str:
        if not isinstance(value, str) or value not in self.words:
            raise ValueError(shown(value))
        return value


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number from `low` to `high`."""

    low: int
    high: int

    @property
    def expected(self) -> str:
        return f"a whole number from {self.low} to {self.high}"

    def read(self, value: object, textual: bool) -> int:
        if textual and isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value, re.ASCII):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not self.low <= value <= self.high:
            raise ValueError(shown(value))
        return value


@dataclass(frozen=True, slots=True)
class Number:
    """A number from `low` to `high`; whole ones are welcome too."""

    low: float
    high: float
    unit: str = ""

    @property
    def expected(self) -> str:
        return f"a number{' of ' + self.unit if self.unit else ''} from {self.low:g} to {self.high:g}"

    def read(self, value: object, textual: bool) -> float:
        number = value
        if textual and isinstance(value, str) and re.fullmatch(r"-?\d{1,12}(\.\d{1,12})?", value, re.ASCII):
            number = float(value)
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise ValueError(shown(value))
        if not self.low <= number <= self.high:
            raise ValueError(shown(value))
        return float(number)


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes: a whole number, or a text with a unit ("20 GiB")."""

    low: int
    high: int

    @property
    def expected(self) -> str:
        return f'a size such as "{size_text(self.low)}", from that up to "{size_text(self.high)}"'

    def read(self, value: object, textual: bool) -> int:
        size = value
        if isinstance(value, str):
            match = _SIZE.fullmatch(value)
            size = int(match[1]) << _UNITS[match[2]] if match else int(value) if textual and value.isdecimal() else None
        if isinstance(size, bool) or not isinstance(size, int) or not self.low <= size <= self.high:
            raise ValueError(shown(value))
        return size


def size_text(size: int) -> str:
    unit = next(unit for unit in ("TiB", "GiB", "MiB", "KiB", "B") if size % (1 << _UNITS[unit]) == 0)
    return f"{size >> _UNITS[unit]} {unit}"


@dataclass(frozen=True, slots=True)
class HostPort:
    """An address to listen at, "host:port"; port 0 takes any that is free."""

    expected: str = 'an address "host:port"'

    def read(self, value: object, textual: bool) -> tuple[str, int]:
        if isinstance(value, str):
            host, colon, port = value.rpartition(":")
            if colon and _HOST.fullmatch(host) and re.fullmatch(r"\d{1,5}", port, re.ASCII) and int(port) < 65536:
                return host.strip("[]"), int(port)
        raise ValueError(shown(value))


@dataclass(frozen=True, slots=True)
class FilePath:
    """A path, made absolute against the current directory."""

    expected: str = "a path"

    def read(self, value: object, textual: bool) -> Path:
        if not isinstance(value, str) or not value or "\0" in value:
            raise ValueError(shown(value))
        return Path(value).expanduser().absolute()


@dataclass(frozen=True, slots=True)
class OrAuto:
    """`kind`, or the word "auto" (read as None): find it out."""

    kind: Kind

    @property
    def expected(self) -> str:
        return f'{self.kind.expected} or "auto"'

    def read(self, value: object, textual: bool) -> Any:
        return None if value == "auto" else self.kind.read(value, textual)
