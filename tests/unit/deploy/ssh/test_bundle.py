"""What is copied to hosts: a wheel of what runs here, by hand, and the same bytes each time."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import zipfile
from pathlib import Path

import pytest

from deploy.ssh import bundle
from deploy.ssh.bundle import BadBundle, make_bundle, make_wheel

ROOT = Path(__file__).parents[4]


def members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_has_all_that_runs_here() -> None:
    made = make_bundle(None)
    assert made.digest == hashlib.sha256(made.content).hexdigest()
    assert not made.offline
    files = members(made.content)
    (wheel,) = [name for name in files if name.startswith("peer_") and name.endswith(".whl")]
    inside = members(files[wheel])
    for package in ("fabric", "zk", "deploy"):
        here = {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")}
        assert {name for name in inside if name.startswith(f"{package}/") and name.endswith(".py")} == here
    assert inside["fabric/flavors.toml"] == (ROOT / "fabric/flavors.toml").read_bytes()
    assert not [name for name in inside if "__pycache__" in name]
    (metadata,) = [content.decode() for name, content in inside.items() if name.endswith("/METADATA")]
    assert "\nRequires-Dist: pyzmq" in metadata
    assert "pytest" not in metadata, "nothing of the extras"
    (commands,) = [content.decode() for name, content in inside.items() if name.endswith("/entry_points.txt")]
    assert "\nfabric = " in commands


def test_the_record_has_every_file_with_its_digest() -> None:
    inside = members(make_wheel("a-b", "1.0", ["c>=1"], {"a/__init__.py": b"x = 1\n"}, {"run": "a:main"}))
    rows = list(csv.reader(inside["a_b-1.0.dist-info/RECORD"].decode().splitlines()))
    assert {row[0] for row in rows} == set(inside)
    for name, digest, size in rows:
        if not name.endswith("/RECORD"):
            wanted = base64.urlsafe_b64encode(hashlib.sha256(inside[name]).digest()).decode().rstrip("=")
            assert (digest, int(size)) == (f"sha256={wanted}", len(inside[name]))


def test_the_same_files_make_the_same_bytes() -> None:
    assert make_bundle(None) == make_bundle(None)


def test_hosts_are_held_to_the_versions_here() -> None:
    lines = members(make_bundle(None).content)["constraints.txt"].decode().splitlines()
    names = {line.partition("==")[0] for line in lines}
    assert {"msgspec", "starlette", "pydantic_core"} <= names, "also what only others need"
    assert not {"peer-provisioning-fabric", "pytest", "mypy"} & names
    assert lines == sorted(lines)


def test_given_wheels_come_along_and_ours_is_made(tmp_path: Path) -> None:
    for name in ("kazoo-2.10-py3-none-any.whl", "peer_provisioning_fabric-0.0-py3-none-any.whl", "README"):
        (tmp_path / name).write_bytes(b"x")
    made = make_bundle(tmp_path)
    assert made.offline
    names = set(members(made.content))
    assert "kazoo-2.10-py3-none-any.whl" in names
    assert len([name for name in names if name.startswith("peer_")]) == 1
    assert "README" not in names
    (tmp_path / "pip-99-py3-none-any.whl").write_bytes(b"x")
    assert [name for name in members(make_bundle(tmp_path).content) if name.startswith("pip-")] == [
        "pip-99-py3-none-any.whl"
    ]
    assert made.digest != make_bundle(None).digest


def test_a_folder_without_wheels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadBundle, match="expected a folder with wheels, found none"):
        make_bundle(tmp_path)
    with pytest.raises(BadBundle, match="No such file"):
        make_bundle(tmp_path / "none")
    (tmp_path / "no wheel.whl").touch()
    with pytest.raises(BadBundle, match="expected names of wheels, found"):
        make_bundle(tmp_path)


def test_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "MAX_BUNDLE_BYTES", 1000)
    with pytest.raises(BadBundle, match="expected a bundle of at most"):
        make_bundle(None)
