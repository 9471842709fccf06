"""The HTTP API, as the commands use it, and where it is.

One `Api` is one connection pool. Each call either returns what the API answered or raises `Failure` with one line that
says what was expected, what was found, and where; problem details (RFC 9457) become such a line, with one more for each
wrong field and each reason. Nothing is tried again here but a deployment's POST, which its idempotency key makes safe.
"""

from __future__ import annotations

import json
import os
import uuid
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from fabric.cli.exits import Exit, Failure
from fabric.local.folder import Folder, default_path

DEFAULT_API = "http://127.0.0.1:8420"
CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 60.0
"""Above every wait of the API itself, so that its own, better explained, time-out comes first."""
DEPLOY_TRIES = 3
PAGE = 1000
NOT_PLACED = "does-not-fit"
MISSING = 404

V = TypeVar("V")
Query = Mapping[str, str | int]


def address(given: str | None) -> str:
    """Where the API is: `given` (--api), else $FABRIC_API, else the local fabric's, else the default."""
    found = given or os.environ.get("FABRIC_API")
    if not found:
        found = _local() or DEFAULT_API
    if not found.startswith(("http://", "https://")):
        raise Failure(f"the API's address: expected a URL like {DEFAULT_API}, found {found!r}", Exit.USAGE)
    return found.rstrip("/")


def _local() -> str:
    """The API of the fabric that runs on this machine, or nothing."""
    state = Folder(default_path()).read_state()
    process = state.api.process if state else None
    return state.api.where if state and process and process.alive else ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A JSON answer, as bytes to pass on to programs."""

    body: bytes

    def read(self, kind: type[V]) -> V:
        try:
            return msgspec.json.decode(self.body, type=kind)
        except msgspec.DecodeError as error:
            raise Failure(
                f"the API answered what this version does not understand ({kind.__name__}): {error}"
            ) from error


class Api:
    """A context manager: the connections are closed at its end."""

    def __init__(self, base: str, answer_timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self.base = base
        try:
            self._client = httpx.Client(
                base_url=base,
                timeout=httpx.Timeout(answer_timeout_s, connect=CONNECT_TIMEOUT_S),
                headers={"Accept": "application/json"},
                trust_env=False,  # a proxy of the desktop is not for the API of a fabric
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise Failure(
                f"the API's address: expected a URL like {DEFAULT_API}, found {base!r} ({error})", Exit.USAGE
            ) from error

    @classmethod
    def of(cls, args: Namespace) -> Self:
        return cls(address(args.api))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def get(self, path: str, query: Query | None = None) -> Answer:
        return self._call("GET", path, query=query)

    def post(self, path: str, query: Query | None = None, body: object = None) -> Answer:
        return self._call("POST", path, query=query, body=body)

    def patch(self, path: str, body: object) -> Answer:
        return self._call("PATCH", path, body=body)

    def delete(self, path: str, query: Query | None = None) -> Answer:
        return self._call("DELETE", path, query=query)

    def plan(self, request: Mapping[str, object]) -> Answer:
        return self._call("POST", "/v1/deployments", query={"dry_run": "true"}, body=request)

    def deploy(self, request: Mapping[str, object], key: str | None) -> Answer:
        """Repeated when the answer was lost on its way: with its idempotency key that makes no second deployment."""
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        for _ in range(DEPLOY_TRIES - 1):
            try:
                return self._call("POST", "/v1/deployments", body=request, headers=headers)
            except LostAnswer:
                continue
        return self._call("POST", "/v1/deployments", body=request, headers=headers)

    def pages(self, path: str, limit: int, query: Query | None = None) -> Answer:
        """A list, its pages put together up to `limit` items: `items`, `next`, and the last page's other fields, of
        which lists are joined."""
        items: list[object] = []
        whole: dict[str, Any] = {}
        after: str | None = None
        while True:
            asked = {**(query or {}), "limit": min(PAGE, limit - len(items)), **({"after": after} if after else {})}
            page = self.get(path, asked).read(dict[str, Any])
            items.extend(page.pop("items"))
            for name, value in page.items():
                whole[name] = [*whole.get(name, ()), *value] if isinstance(value, list) else value
            after = page.get("next")
            if after is None or len(items) >= limit:
                return Answer(json.dumps({"items": items, **whole}).encode())

    def text(self, path: str, query: Query) -> bytes:
        """What is no JSON: an instance's log."""
        return self._send("GET", path, query=query).content

    def upload(self, name: str, content: Iterator[bytes], size: int | None, digest: str | None) -> Answer:
        """Push an image, streamed; `size` in bytes when it is known."""
        headers = {"Content-Type": "application/octet-stream"}
        if size is not None:
            headers["Content-Length"] = str(size)
        if digest:
            headers["Content-Digest"] = digest
        return Answer(self._send("PUT", f"/v1/images/{segment(name)}", content=content, headers=headers).content)

    def _call(
        self,
        method: str,
        path: str,
        query: Query | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        return Answer(self._send(method, path, query=query, json=body, headers=headers).content)

    def lines(self, method: str, path: str, query: Query) -> Iterator[str]:
        """An answer that comes line by line, while something is done."""
        with self._told(method, path), self._client.stream(method, path, params=dict(query)) as response:
            if not response.is_success:
                response.read()
                raise problem(response)
            yield from response.iter_lines()

    def _send(self, method: str, path: str, query: Query | None = None, **named: Any) -> httpx.Response:
        with self._told(method, path):
            response = self._client.request(method, path, params=dict(query or {}), **named)
        if response.is_success:
            return response
        raise problem(response)

    @contextmanager
    def _told(self, method: str, path: str) -> Iterator[None]:
        """What goes wrong on the way becomes a Failure."""
        try:
            yield
        except httpx.ConnectError as error:
            raise NoAnswer(
                f"no API answers at {self.base} ({error}): start a fabric with 'fabric up', or name one with --api"
            ) from error
        except httpx.TimeoutException as error:
            raise NoAnswer(f"the API at {self.base} did not answer {method} {path} in time") from error
        except httpx.TransportError as error:
            raise LostAnswer(
                f"the API at {self.base} broke off {method} {path}: {error or type(error).__name__}"
            ) from error


class NoAnswer(Failure):
    """The API could not be asked, or did not answer."""


class LostAnswer(NoAnswer):
    """The request was sent, and no answer came: it may have been carried out."""


class Missing(Failure):
    """There is no such thing (404)."""


def segment(text: str) -> str:
    """An id or a name as one segment of a path, so that `../nodes` is looked for, not followed."""
    return quote(text, safe="") if text not in ("", ".", "..") else quote(f"{text} ", safe="")


class _FieldError(msgspec.Struct, frozen=True):
    field: str
    expected: str
    found: str


class _Problem(msgspec.Struct, frozen=True):
    title: str
    status: int
    type: str = ""
    detail: str = ""
    errors: tuple[_FieldError, ...] = ()
    reasons: tuple[str, ...] = ()


def problem(response: httpx.Response) -> Failure:
    """What the API refused, as one line and its details."""
    try:
        found = msgspec.json.decode(response.content, type=_Problem)
    except msgspec.DecodeError:
        request = response.request
        return Failure(
            f"{request.method} {request.url}: expected an answer of the fabric's API, found HTTP status "
            f"{response.status_code} and {response.headers.get('Content-Type', 'no content type')}"
        )
    retry = response.headers.get("Retry-After")
    code = Exit.NOT_PLACED if found.type.rpartition(":")[2] == NOT_PLACED else Exit.ERROR
    wrong = [f"{error.field}: expected {error.expected}, found {error.found}" for error in found.errors]
    if len(wrong) == 1 and not found.reasons:
        return Failure(wrong[0], code)
    text = found.detail or found.title
    if response.status_code == MISSING:
        return Missing(text, code, (*wrong, *found.reasons))
    return Failure(f"{text} (try again in {retry} s)" if retry else text, code, (*wrong, *found.reasons))
