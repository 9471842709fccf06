"""What is copied to a host: our packages as one wheel, made from what runs here, and where wanted those it needs.

The wheel is written by hand (it is an archive with a few lines of metadata), so it needs no build tools, and is the
same bytes for the same files: its digest says whether a host has it. The bundle around it is an archive of plain files:

    peer_provisioning_fabric-….whl
    pip-….whl          the one that comes with Python here, where that has it
    constraints.txt    the versions of what it needs here, for hosts that fetch that by themselves
    *.whl              with --wheels: all that it needs, so the host fetches nothing
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import io
import re
import sysconfig
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import deploy
import fabric
import zk

DISTRIBUTION = "peer-provisioning-fabric"
PACKAGES = (fabric, zk, deploy)
CONSTRAINTS = "constraints.txt"
MAX_BUNDLE_BYTES = 1 << 30
WHEEL = f"Wheel-Version: 1.0\nGenerator: {DISTRIBUTION}\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_LONG_AGO = (1980, 1, 1, 0, 0, 0)
_WHEEL_NAME = re.compile(r"[A-Za-z0-9_.]+-[A-Za-z0-9_.!+]+(-[A-Za-z0-9_.]+){3,4}\.whl", re.ASCII)


class BadBundle(Exception):
    """No bundle can be made: what was expected, what was found, where."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """`digest`: hex SHA-256 of `content`. `offline`: it brings all that is needed."""

    content: bytes
    digest: str
    offline: bool


def make_bundle(wheels: Path | None) -> Bundle:
    """Of what runs here. `wheels`: a folder with the wheels that ours needs. Raises BadBundle."""
    version = _version()
    name = f"{DISTRIBUTION.replace('-', '_')}-{version}-py3-none-any.whl"
    files = {name: make_wheel(DISTRIBUTION, version, _requirements(), _sources(), _commands())}
    if wheels is None:
        files[CONSTRAINTS] = "".join(f"{line}\n" for line in _versions()).encode()
    else:
        files |= _read_wheels(wheels)
    if not any(file.startswith("pip-") for file in files):
        files |= _pip()
    content = _archive(files)
    if len(content) > MAX_BUNDLE_BYTES:
        raise BadBundle(f"expected a bundle of at most {MAX_BUNDLE_BYTES >> 20} MiB, found {len(content) >> 20} MiB")
    return Bundle(content, hashlib.sha256(content).hexdigest(), wheels is not None)


def make_wheel(
    name: str,
    version: str,
    requires: Iterable[str],
    files: Mapping[str, bytes],
    commands: Mapping[str, str],
) -> bytes:
    """A wheel of pure Python. `files`: content by path. `commands`: "module:function" by the command's name."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Python: >=3.11"]
    metadata += [f"Requires-Dist: {requirement}" for requirement in requires]
    scripts = "".join(f"{command} = {function}\n" for command, function in sorted(commands.items()))
    written = dict(files) | {
        f"{info}/METADATA": ("\n".join(metadata) + "\n").encode(),
        f"{info}/WHEEL": WHEEL.encode(),
        f"{info}/entry_points.txt": f"[console_scripts]\n{scripts}".encode(),
    }
    record = "".join(f"{path},sha256={_urlsafe(content)},{len(content)}\n" for path, content in sorted(written.items()))
    return _archive(written | {f"{info}/RECORD": f"{record}{info}/RECORD,,\n".encode()}, zipfile.ZIP_DEFLATED)


def _archive(files: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The same bytes for the same files."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for path, content in sorted(files.items()):
            entry = zipfile.ZipInfo(path, _LONG_AGO)
            entry.external_attr = 0o100644 << 16
            entry.compress_type = compression
            archive.writestr(entry, content)
    return out.getvalue()


def _urlsafe(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def _sources() -> dict[str, bytes]:
    """The files of our packages, as they are here now."""
    found = {}
    for package in PACKAGES:
        (root,) = (Path(path) for path in package.__path__)
        for path in sorted(root.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("."):
                found[f"{root.name}/{path.relative_to(root).as_posix()}"] = path.read_bytes()
    return found


def _distribution() -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        raise BadBundle(f"expected the package {DISTRIBUTION} to be installed here, found it not") from None


def _version() -> str:
    return _distribution().version


def _requirements() -> list[str]:
    """What it needs to run; nothing of the extras."""
    return [line for line in _distribution().requires or () if "extra ==" not in line]


def _commands() -> dict[str, str]:
    return {each.name: each.value for each in _distribution().entry_points if each.group == "console_scripts"}


def _versions() -> list[str]:
    """Of the packages here that ours needs, and those need, as constraints. Without the others: a new linter here is no
    reason to install anything there."""
    found: dict[str, str] = {}
    left = _requirements()
    while left:
        name = re.split(r"[^A-Za-z0-9._-]", left.pop(), maxsplit=1)[0]
        try:
            needed = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # not for this system
        if needed.name not in found:
            found[needed.name] = needed.version
            left += [line for line in needed.requires or () if "extra ==" not in line]
    return sorted(f"{name}=={version}" for name, version in found.items())


def _pip() -> dict[str, bytes]:
    """pip as a wheel, from where Python keeps it for new environments; nothing where it keeps none."""
    bundled = importlib.util.find_spec("ensurepip")
    folders = [sysconfig.get_config_var("WHEEL_PKG_DIR")]
    if bundled is not None and bundled.origin is not None:
        folders.append(Path(bundled.origin).parent / "_bundled")
    for folder in filter(None, folders):
        if found := sorted(Path(folder).glob("pip-*.whl")):
            return {found[-1].name: found[-1].read_bytes()}
    return {}


def _read_wheels(folder: Path) -> dict[str, bytes]:
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".whl")
        if not paths:
            raise BadBundle(f"--wheels: expected a folder with wheels, found none in {folder}")
        for path in paths:
            if not _WHEEL_NAME.fullmatch(path.name):
                raise BadBundle(f"--wheels: expected names of wheels, found {path}")
        return {path.name: path.read_bytes() for path in paths if not path.name.startswith("peer_provisioning_fabric-")}
    except OSError as error:
        raise BadBundle(f"--wheels: expected a folder with wheels, found {folder}: {error.strerror}") from None
