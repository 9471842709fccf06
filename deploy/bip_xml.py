"""BIP as XML, as Figure 9 of HPL-2001-321 prints it: commands that a person or a foreign program writes.

    <?xml version="1.0" encoding="UTF-8"?>
    <header>
      <to addr="…"/>                          the boot stub
      <from addr="…"/>                        who says it
    </header>
    <?xml version="1.0" encoding="UTF-8"?>
    <body>
      <cmd name="deploy">                     any command of Table 1
        <managent id="/region1/zone3"/>       missing in the figure, needed by Table 1: may be told beside the message
        <repository uri="…"/>                 with deploy, configure-env, configure-managent
        <initiator uri="…"/>
        <boot-file type="java" name="SimpleAgent.class"/>
      </cmd>
    </body>

The boot file is the third of the three ways to learn the start command (4.3): the initiator tells it. `start_command`
says which one a type and a name stand for. Our own initiators speak BIP over the bus (deploy.messages); `bip_call` is
the same command there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import get_args

from deploy.identity import BadIdentity, check_path
from deploy.messages import BipCall, Charge, Parent
from deploy.states import Verb
from deploy.xml import BadXml, Element, Limits, parse_several, tag

VERBS: tuple[Verb, ...] = get_args(Verb)
NEED_REPOSITORY: tuple[Verb, ...] = ("deploy", "configure-env", "configure-managent")
BOOT_TYPES = ("java", "python", "script", "executable")
LIMITS = Limits(bytes=16_384, elements=32, depth=3, attributes=2, text_chars=2_000)
_DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>'
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
_URI = re.compile(r"[!-~]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class BootFile:
    type: str
    name: str


@dataclass(frozen=True, slots=True)
class ControlMessage:
    """`to` and `sender` are addresses as the message has them. "" and None: not told."""

    verb: Verb
    to: str
    sender: str
    managent: str = ""
    repository: str = ""
    initiator: str = ""
    boot_file: BootFile | None = None


def read_control(data: bytes, document: str) -> ControlMessage:
    """`document`: its name, for errors. Raises BadXml."""
    roots = parse_several(data, document, LIMITS)
    if len(roots) != 2:
        raise BadXml(document, 1, 1, f"expected a <header> and a <body>, each an XML document, found {len(roots)}")
    header, body = roots
    header.expect("header")
    header.only(children=("to", "from"))
    body.expect("body")
    body.only(children=("cmd",))
    command = body.single("cmd")
    if command is None:
        raise body.error("expected <cmd>, found none")
    command.only(attributes=("name",), children=("managent", "repository", "initiator", "boot-file"))
    command.needs("name")
    verb = command.one_of("name", VERBS)
    assert verb is not None
    repository = _told(command, "repository", "uri")
    if verb in NEED_REPOSITORY and not repository:
        raise command.error(f"{verb}: expected <repository>, found none")
    return ControlMessage(
        verb,
        _told(header, "to", "addr"),
        _told(header, "from", "addr"),
        _managent(command),
        repository,
        _told(command, "initiator", "uri"),
        _boot_file(command),
    )


def write_control(message: ControlMessage) -> bytes:
    told = [
        ("managent", [("id", message.managent)]),
        ("repository", [("uri", message.repository)]),
        ("initiator", [("uri", message.initiator)]),
    ]
    if message.boot_file is not None:
        told.append(("boot-file", [("type", message.boot_file.type), ("name", message.boot_file.name)]))
    header = [
        f"  {tag(name, [('addr', addr)])}" for name, addr in (("to", message.to), ("from", message.sender)) if addr
    ]
    lines = [f"    {tag(name, attributes)}" for name, attributes in told if attributes[0][1]]
    command = f'  <cmd name="{message.verb}">'
    whole = [
        _DECLARATION,
        "<header>",
        *header,
        "</header>",
        _DECLARATION,
        "<body>",
        command,
        *lines,
        "  </cmd>",
        "</body>",
    ]
    return "\n".join([*whole, ""]).encode()


def start_command(boot_file: BootFile | None) -> str:
    """What starts the program that a boot file is; "" for none."""
    if boot_file is None:
        return ""
    if boot_file.type == "java":
        return f"java {boot_file.name.removesuffix('.class')}"
    return f"python3 {boot_file.name}" if boot_file.type == "python" else f"./{boot_file.name}"


def bip_call(
    message: ControlMessage, *, call: str, parent: Parent, epoch: int, attempt: int, managent: str = ""
) -> BipCall:
    """The same over the bus. `managent`: for a message that names none. Raises BadIdentity."""
    told = message.managent or managent
    if not told:
        raise BadIdentity(f"{message.verb}: expected a managent's id, found none in the message and none beside it")
    charge = Charge(message.repository, start=start_command(message.boot_file)) if message.repository else None
    return BipCall(call, message.verb, check_path(told), epoch, attempt, parent, charge)


def _told(element: Element, name: str, attribute: str) -> str:
    child = element.single(name)
    if child is None:
        return ""
    child.only(attributes=(attribute,))
    value = child.needs(attribute)
    if not _URI.fullmatch(value):
        raise child.error(f"{attribute}: expected printable ASCII characters, found {value[:100]!r}")
    return value


def _managent(command: Element) -> str:
    child = command.single("managent")
    told = _told(command, "managent", "id")
    if child is None:
        return ""
    try:
        return check_path(told if told.startswith("/") else f"/{told}")
    except BadIdentity as error:
        raise child.error(str(error)) from None


def _boot_file(command: Element) -> BootFile | None:
    child = command.single("boot-file")
    if child is None:
        return None
    child.only(attributes=("type", "name"))
    child.needs("type")
    type = child.one_of("type", BOOT_TYPES)
    assert type is not None
    name = child.needs("name")
    if not _FILE.fullmatch(name):
        raise child.error(f"name: expected a file name, found {name[:100]!r}")
    return BootFile(type, name)
