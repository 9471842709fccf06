"""Every key of the configuration of an agent and of the API: its kind, its default, and a sentence for the example
file.

`limits.*` are the fields of fabric.roles.settings.Settings, so a new limit is configurable without a word here.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fabric.config_values import Choice, FilePath, HostPort, Kind, Number, OrAuto, Size, Text, Whole, size_text
from fabric.roles.settings import Settings

NAME = r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?"
MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
MONTH_S = 30 * 86400.0
EXAMPLE_WIDTH = 100

_FOREIGN = "API CONFIG LOCAL ZK_IMAGE TEST_ZK DEPLOYMENT ORDINAL INSTANCE INSTANCE_DIR FLAVOR IMAGE IMAGE_ROOT"
FOREIGN_VARIABLES = frozenset("FABRIC_" + word for word in _FOREIGN.split())
"""Variables with our prefix that are no keys: the command line's, the set-up's, those of an instance."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key. `path`: "capacity.vcpus" is key `vcpus` of the table `capacity`. `default`: as TOML would have it, or
    None: then it must be given, unless `optional`. `hidden`: for the environment alone, between processes of ours.
    `shown`: not commented out in the example."""

    path: str
    kind: Kind
    default: str | int | float | None
    help: str
    optional: bool = False
    hidden: bool = False
    example: str = ""
    shown: bool = False

    @property
    def variable(self) -> str:
        return "FABRIC_" + self.path.upper().replace(".", "_")

    @property
    def flag(self) -> str:
        return "--" + self.path.replace(".", "-").replace("_", "-")


_NAME_KIND = Text("a name of at most 64 of a-z 0-9 . _ -, beginning and ending with a letter or digit", NAME)
_COMMON = (
    Key(
        "zk",
        Text('a connect string "host:port,host:port/chroot"', max_chars=2048),
        None,
        "The ZooKeeper servers, and below which znode everything of this fabric is.",
        example="192.0.2.1:2181,192.0.2.2:2181,192.0.2.3:2181/fabric",
    ),
    Key("zookeeper_wait_s", Number(0.1, 86400.0, "seconds"), 60.0, "For ZooKeeper to answer, at the first start."),
    Key(
        "session_timeout_s", Number(0.5, 300.0, "seconds"), 10.0, "Who is silent to ZooKeeper for so long is gone."
    ),
    Key(
        "cluster_key_file",
        FilePath(),
        None,
        "The key that seals the messages of this fabric: 64 hex digits, the same on every host, in a file that its "
        "owner alone may read (umask 077; openssl rand -hex 32 > cluster.key). Needed to listen beyond this machine.",
        optional=True,
        example="/etc/fabric/cluster.key",
        shown=True,
    ),
    Key("log_level", Choice(("debug", "info", "warning", "error")), "info", "What is logged, to standard error."),
)
_LIFELINE = Key(
    "lifeline_fd",
    Whole(3, 1 << 20),
    None,
    "A local fabric's processes leave when this pipe ends.",
    optional=True,
    hidden=True,
)
_FAULTS = Key(
    "faults",
    FilePath(),
    None,
    "A local fabric's processes look here for faults that somebody wants them to have (fabric up --faults).",
    optional=True,
    hidden=True,
)


NARROWER = {"heartbeat_interval_s": (0.1, 60.0), "offer_wait_s": (0.1, 60.0), "command_wait_s": (0.1, 60.0)}
"""Limits that travel in messages, which take no others."""


CHOICES = {"discussion": ("known", "full")}


def _limits() -> Iterator[Key]:
    for field in dataclasses.fields(Settings):
        default = field.default
        if field.name == "session_timeout_s" or not isinstance(default, int | float | str):
            continue
        if isinstance(default, str):
            yield Key(f"limits.{field.name}", Choice(CHOICES[field.name]), default, "")
            continue
        whole = isinstance(default, int)
        low, high = NARROWER.get(field.name, (0.001, MONTH_S))
        kind: Kind = Whole(1, 1_000_000) if whole else Number(low, high, "seconds")
        if field.name.endswith("_share"):
            kind = Number(0.0, 1.0)
        yield Key(f"limits.{field.name}", kind, default, "")


def _per_dimension() -> Iterator[Key]:
    what = {
        "vcpus": (Whole(1, 65536), Whole(0, 65536), 0),
        "memory_mib": (Whole(1, 1 << 30), Whole(0, 1 << 30), 1024),
        "disk_mib": (Whole(0, 1 << 40), Whole(0, 1 << 40), 10240),
    }
    for dimension, (kind, _, _) in what.items():
        yield Key(f"capacity.{dimension}", OrAuto(kind), "auto", "")
    for dimension, (_, reserve, default) in what.items():
        yield Key(f"host_reserve.{dimension}", reserve, default, "")
    for dimension in what:
        yield Key(f"overcommit.{dimension}", Number(0.1, 64.0), 1.0, "")


AGENT_KEYS: tuple[Key, ...] = (
    Key(
        "node",
        _NAME_KIND,
        None,
        "This node's name, unique in the fabric. Default: the host's name.",
        True,
        example="r1c01",
    ),
    Key("rack", _NAME_KIND, None, "The rack it is in.", example="r1"),
    Key("layer", Choice(("compute", "storage")), None, "Whether it runs instances or keeps images.", example="compute"),
    *_COMMON,
    Key("listen", HostPort(), "0.0.0.0:8421", "Where peers connect. Port 0 takes any that is free."),
    Key("data_listen", HostPort(), "0.0.0.0:8422", "Where an agent serves chunks of images."),
    Key(
        "advertise",
        Text("a host name or address", r"[A-Za-z0-9.:\[\]%_-]+", 255),
        None,
        "How peers reach this host, best an address. Default: where it listens, or its address towards ZooKeeper.",
        True,
        example="192.0.2.17",
    ),
    Key("state_dir", FilePath(), "/var/lib/fabric", "Journal, instances, images. One agent a directory."),
    Key("driver", Choice(("process", "null")), "process", "How instances run; null starts nothing (for load tests)."),
    Key("cache_size", Size(MIB, 1024 * TIB), size_text(20 * GIB), "Unused images a compute node keeps, at most."),
    Key(
        "store_size",
        Size(MIB, 1024 * TIB),
        None,
        "Images a storage node holds, at most. Default: what the disk has.",
        True,
        example="200 GiB",
    ),
    Key(
        "scrub_mib_s",
        Number(0.001, 100_000.0, "MiB/s"),
        20.0,
        "How fast a storage node reads what it holds again, to find chunks that have rotted.",
    ),
    Key("scrub_every_s", Number(0.1, MONTH_S, "seconds"), 86400.0, "From the beginning of one such pass to the next."),
    _LIFELINE,
    _FAULTS,
    Key("managent", Text("the path of a managent", r"(/[A-Za-z0-9._-]+)+", 512), None, "Its path.", True, hidden=True),
    *_per_dimension(),
    *_limits(),
)

API_KEYS: tuple[Key, ...] = (
    *_COMMON,
    Key("listen", HostPort(), "127.0.0.1:8420", "Where users connect. There is no login: let a proxy see to that."),
    Key("peer_listen", HostPort(), "127.0.0.1:0", "An address of this host that agents reach; they answer to it."),
    Key(
        "flavors_file",
        FilePath(),
        None,
        "The sizes on offer, a TOML file with a table for each. Default: Tiny to XLarge.",
        True,
        example="/etc/fabric/flavors.toml",
    ),
    _LIFELINE,
    _FAULTS,
    *_limits(),
)

_SECTIONS = {
    "capacity": 'What the node offers to instances. A number is offered as it is; with "auto" it is what the host has, '
    "less [host_reserve], times [overcommit].",
    "host_reserve": 'What the host keeps for itself of each dimension that is "auto".',
    "overcommit": 'How often each dimension that is "auto" is given away.',
    "limits": "Waits, sizes and numbers of the protocols; the same on every host. The defaults suit racks of 40 nodes.",
}


def example(keys: Sequence[Key], title: str) -> str:
    """An annotated TOML file in which every key is named; those with a default are commented out."""
    lines = [f"# {title}", "# Each key may also be set by environment and flag: " + _also(keys[0])]
    section = ""
    for key in keys:
        if key.hidden:
            continue
        table, dot, name = key.path.rpartition(".")
        if dot and table != section:
            section = table
            lines += ["", *_comment(_SECTIONS[table]), f"[{table}]"]
        if key.help:
            lines += ["", *_comment(f"{key.help} Expects {key.kind.expected}.")]
        value = key.example or key.default
        text = f'"{value}"' if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
        free = (key.optional or key.default is not None) and not key.shown
        lines.append(f"{'# ' if free else ''}{name} = {text}")
    return "\n".join(lines) + "\n"


def _also(key: Key) -> str:
    return f"{key.path} is {key.variable} and {key.flag}."


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, EXAMPLE_WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
