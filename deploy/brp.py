"""BRP, the protocol between boot stub and repository (HPL-2001-321, 4.2, Figure 8): requests, replies, errors.

    <request>                                     <reply>
      <type>install-configuration</type>            <type>install-configuration</type>
      <id>/dc_paloalto/customer_x</id>              <id>/dc_paloalto/customer_x</id>
    </request>                                      <ref type="url" digest="blake3:…">http://sos/config.xml</ref>
                                                  </reply>

The four types: installation-code, install-configuration, managent-configuration, and all, whose replies say for each
reference which of the three it is `for`. Beyond the figure a reference has the `digest` and the `format` (script,
executable, tar, python, java: what repository information calls its type) that are known of it. Figure 8 writes
identifiers without a leading slash; both ways are read, one with it is written.

What the repository cannot answer it answers with `<error code="…">what was expected, what was found</error>`.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from deploy.documents import KINDS, MAX_URL_CHARS, Kind, Reference, reference
from deploy.identity import BadIdentity, check_path
from deploy.xml import Element, Limits, parse, tag

RequestType = Literal["installation-code", "install-configuration", "managent-configuration", "all"]
TYPE_OF: dict[Kind, RequestType] = {
    "code": "installation-code",
    "install": "install-configuration",
    "managent": "managent-configuration",
}
KIND_OF: dict[str, Kind] = {name: kind for kind, name in TYPE_OF.items()}
TYPES: tuple[RequestType, ...] = (*TYPE_OF.values(), "all")
_KNOWN_TYPES: dict[bytes, RequestType] = {type.encode(): type for type in TYPES}

REQUEST_LIMITS = Limits(bytes=4_096, elements=8, depth=2, attributes=0, text_chars=1_024)
REPLY_LIMITS = Limits(bytes=1 << 20, elements=10_000, depth=2, attributes=4, text_chars=MAX_URL_CHARS)
MAX_ERROR_CHARS = 1_500
_OURS = re.compile(rb"<request><type>([a-z-]{1,40})</type><id>(/[A-Za-z0-9._/-]{1,511})</id></request>")
"""As `write_request` writes it: read without a parser of XML, to the same end."""


@dataclass(frozen=True, slots=True)
class Request:
    type: RequestType
    id: str


@dataclass(frozen=True, slots=True)
class Reply:
    """`code`, `install`, `managent`: in the order of the repository's entries; of the kinds that were not asked for,
    empty."""

    type: RequestType
    id: str
    code: tuple[Reference, ...] = ()
    install: tuple[Reference, ...] = ()
    managent: tuple[Reference, ...] = ()

    def refs(self, kind: Kind) -> tuple[Reference, ...]:
        refs: tuple[Reference, ...] = getattr(self, kind)
        return refs


@dataclass(frozen=True, slots=True)
class Refusal:
    code: str
    text: str


def wants(type: RequestType, kind: Kind) -> bool:
    return type in ("all", TYPE_OF[kind])


def read_request(data: bytes, document: str) -> Request:
    """Raises BadXml."""
    ours = _OURS.fullmatch(data)
    if ours is not None:
        known = _KNOWN_TYPES.get(ours[1])
        with suppress(BadIdentity):
            if known is not None:
                return Request(known, check_path(ours[2].decode("ascii")))
    root = parse(data, document, REQUEST_LIMITS)
    root.expect("request")
    root.only(children=("type", "id"))
    return Request(_type(root), _id(root))


def write_request(request: Request) -> bytes:
    return f"<request>{tag('type', text=request.type)}{tag('id', text=request.id)}</request>".encode()


def read_reply(data: bytes, document: str) -> Reply | Refusal:
    """Raises BadXml."""
    root = parse(data, document, REPLY_LIMITS)
    if root.name == "error":
        root.only(attributes=("code",), text=True)
        return Refusal(root.needs("code")[:100], root.text[:MAX_ERROR_CHARS])
    root.expect("reply")
    root.only(children=("type", "id", "ref"))
    type, id = _type(root), _id(root)
    refs: dict[Kind, list[Reference]] = {kind: [] for kind in KINDS}
    for child in root.children:
        if child.name == "ref":
            kind = _kind(child, type)
            refs[kind].append(_ref(child, kind))
    return Reply(type, id, tuple(refs["code"]), tuple(refs["install"]), tuple(refs["managent"]))


def without_id(data: bytes, id: str) -> bytes:
    """A reply as it would be for any other identifier: those that are equal say the same. Empty when it does not have
    this one, once."""
    told = f"<id>{id}</id>".encode()
    before, found, after = data.partition(told)
    return before + b"\0" + after if found and told not in after else b""


def write_reply(reply: Reply) -> bytes:
    return write_refs(reply).replace(b"\0", reply.id.encode())


def write_refs(reply: Reply) -> bytes:
    """The reply with a zero byte for the identifier: the same for all that match the same entries."""
    lines = ["<reply>", f"  {tag('type', text=reply.type)}", "  <id>\0</id>"]
    for kind in KINDS:
        whose = TYPE_OF[kind] if reply.type == "all" else ""
        for ref in reply.refs(kind):
            attributes = [("type", "url"), ("for", whose), ("format", ref.type), ("digest", ref.digest)]
            lines.append(f"  {tag('ref', attributes, ref.url)}")
    return "\n".join([*lines, "</reply>", ""]).encode()


def write_error(code: str, text: str) -> bytes:
    return f"{tag('error', [('code', code)], text[:MAX_ERROR_CHARS] or 'no reason given')}\n".encode()


def _one(root: Element, name: str) -> Element:
    element = root.single(name)
    if element is None:
        raise root.error(f"expected <{name}>, found none")
    element.only(text=True)
    return element


def _type(root: Element) -> RequestType:
    element = _one(root, "type")
    for known in TYPES:
        if element.text == known:
            return known
    raise element.error(f"expected {' or '.join(TYPES)}, found {element.text[:100]!r}")


def _id(root: Element) -> str:
    element = _one(root, "id")
    try:
        return check_path(element.text if element.text.startswith("/") else f"/{element.text}")
    except BadIdentity as error:
        raise element.error(str(error)) from None


def _kind(element: Element, type: RequestType) -> Kind:
    element.only(attributes=("type", "for", "format", "digest"), text=True)
    element.one_of("type", ("url",))
    whose = element.one_of("for", tuple(KIND_OF))
    if type == "all" and whose is None:
        raise element.error("expected attribute 'for' in a reply to a request for all, found none")
    if type != "all" and whose not in (None, type):
        raise element.error(f"for: expected {type}, found {whose}")
    return KIND_OF[whose or type]


def _ref(element: Element, kind: Kind) -> Reference:
    if not element.text:
        raise element.error("expected a URL, found none")
    return reference(element, element.text, element.attributes.get("format"), kind)
