"""`fabric managent explain`: which entry of a repository matches a managent, and which document gave which value."""

from __future__ import annotations

import asyncio
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Literal

import msgspec
from msgspec.structs import asdict

from deploy import matching
from deploy.cli.places import allowed, served_here
from deploy.cli.showing import emit, shortened
from deploy.documents import ConfigurationDocument, Reference
from deploy.identity import BadIdentity, check_path, relative
from deploy.matching import BadMatch, Conflict, Explained, Merged, Setting, prints
from deploy.repository.client import HttpClient
from deploy.repository.content import ContentCache
from deploy.repository.description import LoadedDescription, description_of, load_description
from deploy.repository.fetcher import Fetcher
from deploy.repository.files import BadFolder
from deploy.repository.folder import Folder
from deploy.resolved import Unresolved
from fabric.cli import output
from fabric.cli.exits import Exit, Failure

CACHE_BYTES = 4 << 30


class GivenView(msgspec.Struct, frozen=True):
    list: Literal["managent-code", "install-config", "managent-config"]
    entry: int
    pattern: str
    url: str
    digest: str
    error: str


class OverriddenView(msgspec.Struct, frozen=True):
    value: str
    url: str


class SettingView(msgspec.Struct, frozen=True):
    list: Literal["install-config", "managent-config"]
    name: str
    value: str
    entry: int
    pattern: str
    url: str
    overridden: tuple[OverriddenView, ...]


class ExplainedView(msgspec.Struct, frozen=True):
    """For programs."""

    path: str
    identifier: str
    repository: str
    generation: str
    initiator: bool
    prints: dict[str, str]
    given: tuple[GivenView, ...]
    settings: tuple[SettingView, ...]


_LISTS: dict[str, Literal["managent-code", "install-config", "managent-config"]] = {
    "code": "managent-code",
    "install": "install-config",
    "managent": "managent-config",
}


def explain(args: Namespace) -> int:
    """`args`: path, repository (a URL or a directory), scope, dir, format."""
    repository = args.repository or served_here(args)
    if not repository:
        raise Failure(
            "which description? Expected --repository URL or DIR, or a fabric here ('fabric up'); found none",
            Exit.USAGE,
        )
    try:
        identifier = relative(check_path(args.path), args.scope)
    except BadIdentity as error:
        raise Failure(str(error), Exit.USAGE) from None
    view = asyncio.run(_explained(args.path, identifier, repository, allowed(args)))
    if output.wants_json(args):
        emit(view)
    else:
        _show(view)
    return Exit.DONE


async def _explained(path: str, identifier: str, repository: str, roots: tuple[Path, ...]) -> ExplainedView:
    with tempfile.TemporaryDirectory(prefix="fabric-explain-") as folder:
        client = HttpClient()
        cache = ContentCache(Path(folder), CACHE_BYTES)
        fetcher = Fetcher(client, cache, roots=roots)
        try:
            if repository.startswith(("http://", "https://")):
                description = await load_description(repository, client, fetcher)
            else:
                served = Folder(Path(repository), "http://localhost/")
                await asyncio.to_thread(served.look)
                description = await description_of(served, fetcher)
            return explained_view(path, identifier, description)
        except Unresolved as error:
            raise Failure(str(error)) from None
        except BadFolder as error:
            raise Failure(f"{repository}: {error.problems[0]}", details=error.problems[1:]) from None
        except (BadMatch, Conflict) as error:
            raise Failure(f"{path}: {error}") from None
        finally:
            await fetcher.close()
            await client.close()
            cache.close()


def explained_view(path: str, identifier: str, description: LoadedDescription) -> ExplainedView:
    """Raises BadMatch, Conflict."""

    def document(ref: Reference) -> ConfigurationDocument:
        content = description.contents[ref.url]
        if content.document is None:
            raise Conflict(f"{ref.url}: expected a configuration document, found: {content.error}")
        return content.document

    found = matching.explain(description.information, identifier, document)
    digests = {kind: [description.contents[one.reference.url].digest for one in found.of(kind)] for kind in _KINDS}
    return ExplainedView(
        path=path,
        identifier=identifier,
        repository=description.url,
        generation=description.generation,
        initiator=found.managent.configuration.initiator is not None,
        prints=asdict(prints(digests["code"], digests["install"], digests["managent"])),
        given=tuple(
            GivenView(
                list=_LISTS[one.kind],
                entry=one.entry,
                pattern=str(one.pattern),
                url=one.reference.url,
                digest=description.contents[one.reference.url].digest,
                error=description.contents[one.reference.url].error,
            )
            for one in found.given
        ),
        settings=(*_settings(found, "install", found.install), *_settings(found, "managent", found.managent)),
    )


def _settings(found: Explained, kind: Literal["install", "managent"], merged: Merged) -> tuple[SettingView, ...]:
    given = found.of(kind)

    def view(setting: Setting) -> SettingView:
        by = given[setting.by]
        return SettingView(
            list="install-config" if kind == "install" else "managent-config",
            name=setting.name,
            value=setting.value,
            entry=by.entry,
            pattern=str(by.pattern),
            url=by.reference.url,
            overridden=tuple(OverriddenView(value, given[index].reference.url) for value, index in setting.overridden),
        )

    return tuple(map(view, merged.settings))


_KINDS: tuple[Literal["code", "install", "managent"], ...] = ("code", "install", "managent")


def _show(view: ExplainedView) -> None:
    def short(url: str) -> str:
        return shortened(url, view.repository)

    output.table(
        ("LIST", ">ENTRY", "PATTERN", "REFERENCE"),
        [
            (one.list, one.entry, one.pattern, short(one.url) + (f" ({one.error})" if one.error else ""))
            for one in view.given
        ],
    )
    if view.settings:
        output.table(
            ("SETTING", "VALUE", "FROM", "OVERRIDES"),
            [
                (
                    one.name if one.list == "managent-config" else f"install: {one.name}",
                    one.value,
                    f"{one.list} entry {one.entry}: {short(one.url)}",
                    "; ".join(f"{other.value} ({short(other.url)})" for other in one.overridden),
                )
                for one in view.settings
            ],
            ("OVERRIDES",),
        )
    role = "an initiator" if view.initiator else "no initiator"
    output.line(f"{view.path}: {role}; generation {view.generation}")
    if not view.initiator and not any(one.list == "managent-code" for one in view.given):
        output.line("it can't be deployed: no entry of managent-code matches, and nothing makes it an initiator", "red")
