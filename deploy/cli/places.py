"""Where the directory, the key and the repository are: options, else the environment, else the fabric that was started
on this machine by `fabric up`, or by `fabric up --dir DIR` when that is said here, too.

They belong together: with an option or a variable that names another directory, key and repository of the fabric on
this machine are not taken.
"""

from __future__ import annotations

import os
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from deploy.identity import BadIdentity, check_path, depth
from fabric.cli.exits import Exit, Failure
from fabric.config import read_cluster_key
from fabric.config_values import ConfigError
from fabric.local.folder import Folder, default_path
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


def _local(args: Namespace) -> Folder | None:
    """Of the fabric on this machine that is meant; None when the directory is another one. Raises Failure."""
    if args.dir is not None:
        if args.directory:
            raise Failure("expected --directory or --dir, found both", Exit.USAGE)
        return Folder(args.dir.absolute())
    return None if args.directory or os.environ.get(ZK_VARIABLE) else Folder(default_path())


def _directory(args: Namespace) -> tuple[str, str]:
    """The connect string, and where it was given."""
    folder = _local(args)
    if folder is None:
        return (args.directory, "--directory") if args.directory else (os.environ[ZK_VARIABLE], f"${ZK_VARIABLE}")
    state = folder.read_state()
    if state and state.keeper.alive and state.zookeeper.where:
        return state.zookeeper.where, f"the fabric in {folder.path}"
    if args.dir is not None:
        raise Failure(f"--dir: expected a fabric that runs in {folder.path}, found none", Exit.USAGE)
    raise Failure(
        f"where is the directory? Expected --directory HOSTS, or ${ZK_VARIABLE}, or a fabric on this machine "
        "('fabric up'); found none",
        Exit.USAGE,
    )


def _key(args: Namespace) -> bytes | None:
    if args.key_file:
        return _read(Path(args.key_file), "--key-file")
    if args.dir is None and (given := os.environ.get(KEY_VARIABLE)):
        return _read(Path(given), f"${KEY_VARIABLE}")
    folder = _local(args)
    return _read(folder.key_file, str(folder.key_file)) if folder and folder.key_file.exists() else None


def _read(path: Path, named: str) -> bytes:
    try:
        return read_cluster_key(path, named)
    except ConfigError as error:
        raise Failure(str(error), Exit.USAGE) from None


def repository(args: Namespace) -> str:
    """Raises Failure."""
    url = args.repository or served_here(args)
    if not url:
        raise Failure(
            "which description? Expected --repository URL, or a fabric on this machine ('fabric up'); found neither",
            Exit.USAGE,
        )
    if not url.startswith(("http://", "https://")):
        raise Failure(f"--repository: expected a URL like http://192.0.2.1:8080/, found {url!r}", Exit.USAGE)
    return str(url)


def served_here(args: Namespace) -> str:
    """The URL of the repository of the fabric on this machine that is meant; "" when there is none. Raises Failure."""
    folder = _local(args)
    state = folder.read_state() if folder else None
    if folder is None or state is None or not state.keeper.alive:
        return ""
    try:
        return folder.repository_url.read_text("utf-8")
    except OSError:
        return ""


def allowed(args: Namespace) -> tuple[Path, ...]:
    """Below which files may be read."""
    return tuple(Path(root).expanduser().absolute() for root in args.allow_root)


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
