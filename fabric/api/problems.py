"""Problem details (RFC 9457): the one form of everything that goes wrong.

A handler raises `Problem…` made by one of the functions here; what FastAPI and Starlette raise by themselves (unknown
paths, wrong methods, bodies that do not validate) is turned into the same form in `fabric.api.app`. `type` is a URN:
it never changes, and there is no page behind it that an installation without a network could not read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from fabric.api.schemas import NAME_PATTERN, FieldError, Problem

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:fabric:problem:"
MAX_FOUND = 120
MAX_ERRORS = 100


@dataclass(frozen=True, slots=True)
class Kind:
    """`slug` is the end of `type`; it is part of the interface."""

    slug: str
    status: int
    title: str


NOT_JSON = Kind("not-json", 400, "The body is not JSON")
BAD_HEADER = Kind("bad-header", 400, "A header has a wrong value")
UNKNOWN = Kind("not-found", 404, "There is no such thing")
METHOD = Kind("method-not-allowed", 405, "This method is not allowed here")
STALLED = Kind("upload-stalled", 408, "The upload has come to a stop")
CONFLICT = Kind("conflict", 409, "The request does not fit the present state")
TOO_LARGE = Kind("too-large", 413, "The body is too large")
MEDIA = Kind("unsupported-media-type", 415, "The body has a type that is not understood")
INVALID = Kind("invalid", 422, "The request has wrong content")
UNKNOWN_IMAGE = Kind("unknown-image", 422, "There is no image of this name")
UNKNOWN_FLAVOR = Kind("unknown-flavor", 422, "There is no flavor of this name")
IMPOSSIBLE = Kind("does-not-fit", 422, "This fabric could not hold it even if it were empty")
KEY_REUSED = Kind("idempotency-key-reused", 422, "This Idempotency-Key came with another body before")
BAD_IMAGE = Kind("bad-image", 422, "The content is not an image")
DIGEST = Kind("digest-mismatch", 422, "The content is not what its digest says")
BROKEN = Kind("internal-error", 500, "The API made a mistake")
UNAVAILABLE = Kind("unavailable", 503, "The fabric cannot take this now")
STORE_FULL = Kind("store-full", 507, "There is no room for the image")

KINDS: tuple[Kind, ...] = (
    NOT_JSON, BAD_HEADER, UNKNOWN, METHOD, STALLED, CONFLICT, TOO_LARGE, MEDIA, INVALID, UNKNOWN_IMAGE, UNKNOWN_FLAVOR,
    IMPOSSIBLE, KEY_REUSED, BAD_IMAGE, DIGEST, BROKEN, UNAVAILABLE, STORE_FULL,
)  # fmt: skip


class ProblemError(HTTPException):
    """Ends the handling of a request with a problem. An HTTPException, so that FastAPI lets it through while it reads a
    body."""

    def __init__(
        self,
        kind: Kind,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        reasons: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(kind.status, detail, dict(headers) if headers else None)
        self.kind = kind
        self.errors = tuple(errors)
        self.reasons = tuple(reasons)

    def closing(self) -> ProblemError:
        """The same, at the end of the connection: what the client is still sending shall not be read."""
        headers = {**(self.headers or {}), "Connection": "close"}
        return ProblemError(self.kind, self.detail, errors=self.errors, reasons=self.reasons, headers=headers)


def not_found(what: str, name: str, hint: str = "") -> ProblemError:
    return ProblemError(UNKNOWN, f"There is no {what} {name[:120]!r}." + (f" {hint}" if hint else ""))


def conflict(detail: str, reasons: Sequence[str] = ()) -> ProblemError:
    return ProblemError(CONFLICT, detail, reasons=reasons)


def unavailable(detail: str, retry_after_s: int = 2) -> ProblemError:
    """503: nothing was changed, or it can be asked again without harm."""
    return ProblemError(UNAVAILABLE, detail, headers={"Retry-After": str(retry_after_s)})


def invalid(field: str, expected: str, found: object, kind: Kind = INVALID) -> ProblemError:
    """422 about one field."""
    error = FieldError(field=field, expected=expected, found=found_text(found))
    return ProblemError(kind, f"{field}: expected {expected}, found {error.found}", errors=(error,))


def found_text(value: object) -> str:
    """What was found, as a user would have written it, cut to a bound."""
    try:
        text = json.dumps(value, ensure_ascii=True)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= MAX_FOUND else text[: MAX_FOUND - 1] + "…"


def from_validation(errors: Iterable[Mapping[str, Any]]) -> ProblemError:
    """What pydantic found wrong, one entry a field."""
    entries = [_entry(error) for error in list(errors)[:MAX_ERRORS]]
    detail = "; ".join(f"{entry.field}: expected {entry.expected}, found {entry.found}" for entry in entries[:5])
    return ProblemError(INVALID, detail, errors=entries)


def respond(request: Request, error: ProblemError) -> Response:
    problem = Problem(
        type=TYPE_PREFIX + error.kind.slug,
        title=error.kind.title,
        status=error.kind.status,
        detail=error.detail,
        instance=request.url.path[:512],
        errors=list(error.errors),
        reasons=list(error.reasons),
    )
    return Response(problem.model_dump_json(), error.kind.status, error.headers, MEDIA_TYPE)


def from_status(status: int, detail: str, headers: Mapping[str, str] | None = None) -> ProblemError:
    """A problem for a bare HTTP status that the framework raised."""
    for kind in (NOT_JSON, UNKNOWN, METHOD, CONFLICT, TOO_LARGE, MEDIA, INVALID, UNAVAILABLE):
        if kind.status == status:
            return ProblemError(kind, detail, headers=headers)
    try:
        title = HTTPStatus(status).phrase
    except ValueError:
        title = "Error"
    return ProblemError(Kind("http-error", status, title), detail, headers=headers)


def documented(*kinds: Kind) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route for OpenAPI: which problems it may answer, by status."""
    by_status: dict[int, list[Kind]] = {}
    for kind in kinds:
        by_status.setdefault(kind.status, []).append(kind)
    return {
        status: {
            "description": "; ".join(kind.title for kind in same),
            "content": {
                MEDIA_TYPE: {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "examples": {
                        kind.slug: {
                            "value": {
                                "type": TYPE_PREFIX + kind.slug,
                                "title": kind.title,
                                "status": status,
                                "detail": "What was expected, and what was found.",
                                "instance": "/v1/…",
                                "errors": [],
                                "reasons": [],
                            }
                        }
                        for kind in same
                    },
                }
            },
        }
        for status, same in by_status.items()
    }


def _entry(error: Mapping[str, Any]) -> FieldError:
    context = error.get("ctx") or {}
    if error["type"] == "rule":  # our own, raised in fabric.api.schemas with all three parts
        return FieldError(field=context["field"], expected=context["expected"], found=context["found"])
    field = ".".join(str(part) for part in error["loc"] if part not in ("body", "query", "path", "header", "[key]"))
    found = "nothing" if error["type"] == "missing" else found_text(error.get("input"))
    return FieldError(field=field or "(body)", expected=_expected(error, context), found=found)


def _expected(error: Mapping[str, Any], context: Mapping[str, Any]) -> str:
    match error["type"]:
        case "missing":
            return "a value"
        case "extra_forbidden":
            return "no such field"
        case "int_type" | "int_from_float" | "int_parsing":
            return "a whole number"
        case "bool_parsing" | "bool_type":
            return "true or false"
        case "string_type":
            return "text"
        case "dict_type" | "model_type" | "model_attributes_type":
            return "an object"
        case "greater_than_equal":
            return f"at least {context['ge']}"
        case "less_than_equal":
            return f"at most {context['le']}"
        case "literal_error" | "enum":
            return f"one of {context['expected']}"
        case "string_too_short":
            return f"at least {context['min_length']} characters"
        case "string_too_long":
            return f"at most {context['max_length']} characters"
        case "too_long":
            return f"at most {context['max_length']} entries"
        case "string_pattern_mismatch" if context["pattern"] == NAME_PATTERN:
            return "1 to 64 lower-case letters, digits, '.', '_', '-', the first and the last a letter or digit"
        case "string_pattern_mismatch":
            return f"text that matches {context['pattern']}"
        case _:
            return str(error["msg"])
