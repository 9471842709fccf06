"""Where the directory, the key and the repository are: options, else the environment, else the fabric that was started
on this machine by `fabric up`."""

from __future__ import annotations

import os
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from deploy.identity import BadIdentity, check_path, depth
from fabric.cli.exits import Exit, Failure
from fabric.config import read_cluster_key
from fabric.config_values import ConfigError
from fabric.local.folder import DEPLOY, Folder, default_path
from zk.connect import parse

ZK_VARIABLE = "FABRIC_ZK"
KEY_VARIABLE = "FABRIC_CLUSTER_KEY_FILE"


@dataclass(frozen=True, slots=True)
class Places:
    """`directory`: a connect string. `key`: None seals no message."""

    directory: str
    key: bytes | None

    @property
    def told(self) -> str:
        """For people who wait for it."""
        return f"the directory at {self.directory}"


def places(args: Namespace) -> Places:
    """Raises Failure."""
    directory, named = _directory(args)
    try:
        parse(directory)
    except ValueError as error:
        raise Failure(f"{named}: {error}", Exit.USAGE) from None
    return Places(directory, _key(args))


def _directory(args: Namespace) -> tuple[str, str]:
    """The connect string, and where it was given."""
    if args.directory:
        return args.directory, "--directory"
    if found := os.environ.get(ZK_VARIABLE):
        return found, f"${ZK_VARIABLE}"
    state = Folder(default_path()).read_state()
    if state and state.keeper.alive and state.zookeeper.where:
        return state.zookeeper.where, "the fabric on this machine"
    raise Failure(
        f"where is the directory? Expected --directory HOSTS, or ${ZK_VARIABLE}, or a fabric on this machine "
        "('fabric up'); found none",
        Exit.USAGE,
    )


def _key(args: Namespace) -> bytes | None:
    given = args.key_file or os.environ.get(KEY_VARIABLE)
    if not given:
        if args.directory or os.environ.get(ZK_VARIABLE):
            return None
        path = Folder(default_path()).key_file
        return _read(path, str(path)) if path.exists() else None
    return _read(Path(given), "--key-file" if args.key_file else f"${KEY_VARIABLE}")


def _read(path: Path, named: str) -> bytes:
    try:
        return read_cluster_key(path, named)
    except ConfigError as error:
        raise Failure(str(error), Exit.USAGE) from None


def repository(args: Namespace) -> str:
    """Raises Failure."""
    given = args.repository or _repository_here(args)
    if not given:
        raise Failure("which description? Expected --repository URL, found none", Exit.USAGE)
    if not given.startswith(("http://", "https://")):
        raise Failure(f"--repository: expected a URL like http://192.0.2.1:8080/, found {given!r}", Exit.USAGE)
    return str(given)


def _repository_here(args: Namespace) -> str:
    """Of the fabric on this machine, for its own directory alone; "" for none."""
    from deploy.local.crew import URL

    here = Folder(default_path())
    state = here.read_state()
    if args.directory or os.environ.get(ZK_VARIABLE) or not state or not state.keeper.alive:
        return ""
    try:
        return (here.path / DEPLOY / URL).read_text("utf-8").strip()
    except OSError:
        return ""


def roots(args: Namespace) -> tuple[str, ...]:
    """Raises Failure."""
    for root in args.root:
        try:
            check_path(root)
        except BadIdentity as error:
            raise Failure(f"--root: {error}", Exit.USAGE) from None
        if depth(root) != 1:
            raise Failure(f"--root: expected a managent of the first level, such as /region1, found {root}", Exit.USAGE)
    return tuple(dict.fromkeys(args.root))
