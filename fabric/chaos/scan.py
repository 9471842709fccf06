"""What runs and what is stored on this machine, as the kernel and the disk have it. I/O, but no judgement.

Looking at all processes costs a read of each one's `stat`; the environment, which says whose instance it is, is read
once for each. A process that is between its fork and its exec shows its parent's: it is looked at again next time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from fabric.chaos.world import Running, place_of
from fabric.drivers.procfs import MARK, process_stat
from fabric.images.errors import ManifestError
from fabric.images.manifest import Manifest, chunk_hash, digest_of

FLAVOR = "FABRIC_FLAVOR"
DOUBTS = 5
_Known = tuple[str, str, int, str] | None


class Processes:
    """`nodes`: the folder of the nodes' directories."""

    def __init__(self, nodes: Path) -> None:
        self._nodes = os.path.realpath(nodes)
        self._known: dict[tuple[int, int], _Known] = {}
        self._doubts: dict[tuple[int, int], int] = {}

    def look(self) -> dict[Running, tuple[int, ...]]:
        """Every instance that has a process -> the pids of all its processes."""
        alive: dict[tuple[int, int], _Known] = {}
        doubts: dict[tuple[int, int], int] = {}
        for name in os.listdir("/proc"):
            if not name.isdecimal():
                continue
            pid = int(name)
            state, _, started = process_stat(pid)
            if state in ("", "Z"):
                continue
            key = (pid, started)
            known = self._known.get(key)
            if known is None and self._doubts.get(key, 0) < DOUBTS:
                known = self._place(_environment(pid))
                doubts[key] = self._doubts.get(key, 0) + 1
            elif known is None:
                doubts[key] = DOUBTS
            alive[key] = known
        self._known, self._doubts = alive, doubts
        found: dict[tuple[str, str, int], list[tuple[int, int, str]]] = {}
        for (pid, started), place in alive.items():
            if place is not None:
                node, deployment, ordinal, flavor = place
                found.setdefault((node, deployment, ordinal), []).append((started, pid, flavor))
        told: dict[Running, tuple[int, ...]] = {}
        for (node, deployment, ordinal), those in found.items():
            started, pid, flavor = min(those)
            told[Running(node, deployment, ordinal, pid, started, flavor)] = tuple(pid for _, pid, _ in those)
        return told

    def _place(self, environment: Mapping[str, str]) -> _Known:
        place = place_of(environment.get(MARK, ""), self._nodes)
        return (*place, environment.get(FLAVOR, "")) if place else None


def _environment(pid: int) -> dict[str, str]:
    """{}: it has none, or none yet, or it is hidden."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            entries = file.read().split(b"\0")
    except OSError:
        return {}
    return {name: value for name, _, value in (os.fsdecode(entry).partition("=") for entry in entries if entry)}


# --- stores ----------------------------------------------------------------------------------------------------------


def stored(store: Path) -> dict[str, Manifest]:
    """The images that a storage node has a manifest of: digest -> manifest. A manifest that is none is left out."""
    found: dict[str, Manifest] = {}
    try:
        paths = sorted((store / "manifests").iterdir())
    except OSError:
        return {}
    for path in paths:
        try:
            data = path.read_bytes()
            manifest = Manifest.decode(data)
        except (OSError, ManifestError):
            continue
        if digest_of(data) == f"b3:{path.name}":
            found[f"b3:{path.name}"] = manifest
    return found


def complete(store: Path, manifest: Manifest) -> bool:
    """Every chunk's file is there with its size. Cheap: nothing is read."""
    for at, chunk in enumerate(manifest.chunks):
        try:
            if (store / "chunks" / chunk.hex()).stat().st_size != manifest.size_of(at):
                return False
        except OSError:
            return False
    return True


def verified(store: Path, manifest: Manifest) -> bool:
    """Every byte of it is read, and has its hash."""
    for chunk in dict.fromkeys(manifest.chunks):
        try:
            if chunk_hash((store / "chunks" / chunk.hex()).read_bytes()) != chunk:
                return False
        except OSError:
            return False
    return True


def holders(nodes: Path, names: Iterable[str], digests: Iterable[str], whole: bool) -> dict[str, frozenset[str]]:
    """Digest -> the nodes, of `names`, that have it; `whole`: read and hashed."""
    found: dict[str, set[str]] = {digest: set() for digest in digests}
    for name in names:
        store = nodes / name / "store"
        for digest, manifest in stored(store).items():
            if digest in found and (verified if whole else complete)(store, manifest):
                found[digest].add(name)
    return {digest: frozenset(these) for digest, these in found.items()}


def rotten(nodes: Path, names: Iterable[str], published: Mapping[str, Mapping[str, bytes]]) -> list[str]:
    """Unpacked files in the caches of compute nodes that are not what was published. `published`: digest -> file ->
    its blake3 hash."""
    found: list[str] = []
    for name in names:
        for digest, files in published.items():
            entry = nodes / name / "cache" / "entries" / digest[3:]
            for file, hashed in files.items() if (entry / "complete").exists() else ():
                try:
                    if chunk_hash((entry / "root" / file).read_bytes()) != hashed:
                        found.append(f"{name} has cached image {digest[:14]} with another {file} than was published")
                except FileNotFoundError:
                    if entry.exists():
                        found.append(f"{name} has cached image {digest[:14]} without its {file}")
    return found
