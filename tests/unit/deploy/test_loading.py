"""The planner reads what boot stubs read: files below allowed roots, and images of the fabric."""

from __future__ import annotations

from pathlib import Path

from deploy.configuration import Children, InitiatorRole
from deploy.expansion import Want
from deploy.loading import opened
from deploy.records import StubRef
from deploy.repository.images import ImageAccess
from tests.unit.deploy.repository.test_images import CONFIGURATION, KEY, Fabric, fabric
from tests.unit.deploy.repository.world import INITIATOR, LEAF, run, serving_at, stack
from zk.tree import Tree

STUBS = [StubRef("s1", "tcp://127.0.0.1:1/" + "a" * 32)]
TOP = InitiatorRole((Children("names", names=("a",)),))


def described(root: Path, elsewhere: Path) -> Path:
    """/a is an initiator by a file, its children are leaves by an image; their code is a file."""
    root.mkdir()
    elsewhere.mkdir()
    (elsewhere / "initiator.xml").write_bytes(INITIATOR)
    (elsewhere / "leaf.py").write_bytes(b"class Agent: ...\n")
    (root / "repository.xml").write_text(
        f"""<repository-information>
          <managent-code>
            <entry><pattern xpath="/*/*"/><ref url="file://{elsewhere}/leaf.py" type="python"/></entry>
          </managent-code>
          <managent-config>
            <entry><pattern xpath="/*"/><ref url="file://{elsewhere}/initiator.xml"/></entry>
            <entry><pattern xpath="/*/*"/><ref url="image://leaf"/></entry>
          </managent-config>
        </repository-information>"""
    )
    return root


async def wants(repository: str, roots: tuple[Path, ...], images: ImageAccess | None) -> tuple[Want, ...]:
    async with opened(roots, images) as loader:
        expansion, _ = await loader.expanded(TOP, repository, STUBS)
    return expansion.wants


def access(here: Fabric) -> ImageAccess:
    async def tree() -> Tree:
        return here.tree

    return ImageAccess(tree, KEY, here.context)


def test_what_files_and_images_say_is_planned_for(tmp_path: Path) -> None:
    assert CONFIGURATION.data == LEAF

    async def scenario() -> None:
        elsewhere = tmp_path / "elsewhere"
        async with serving_at(described(tmp_path / "site", elsewhere)) as served, fabric(tmp_path) as here:
            here.publish("leaf", CONFIGURATION)
            here.hold(CONFIGURATION)
            found = await wants(served.url, (elsewhere,), access(here))
            assert [(want.initiator, want.error) for want in found] == [(True, "")] + 10 * [(False, "")]
            assert found[1].code_known
            (site,) = await wants(served.url, (), access(here))
            assert f"expected a file below an allowed root (--allow-root; here none is), found {tmp_path}" in site.error
            named = {want.error for want in (await wants(served.url, (elsewhere,), None))[1:]}
            assert named == {"image://leaf: image://leaf: expected a fabric to get images from, found none configured"}

    run(scenario())


def test_the_prints_are_those_that_boot_stubs_make(tmp_path: Path) -> None:
    async def scenario() -> None:
        elsewhere = tmp_path / "elsewhere"
        async with serving_at(described(tmp_path / "site", elsewhere)) as served, fabric(tmp_path) as here:
            here.publish("leaf", CONFIGURATION)
            here.hold(CONFIGURATION)
            planned = await wants(served.url, (elsewhere,), access(here))
            async with stack(tmp_path / "cache", roots=(elsewhere,), images=access(here)) as boot:
                for want in planned[:2]:
                    assert (await boot.resolve(want.path, served.url)).prints == want.prints

    run(scenario())
