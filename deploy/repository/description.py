"""A whole description: for who wants to know of all managents what they would get, without asking for each.

`load_description` gets a repository's information, with its generation, and every document that it refers to; matching
and merging (deploy.matching) are then the same as the repository's and the boot stubs'. Code is not brought where its
digest is known without; only documents are read. What a reference does not give is that reference's error: only those
managents that get it are wrong.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from deploy.documents import INFORMATION_LIMITS, KINDS, Information, Reference, read_information
from deploy.matching import Content
from deploy.repository.client import HttpClient
from deploy.repository.fetcher import Fetcher
from deploy.repository.folder import Folder
from deploy.repository.resolver import repository_url
from deploy.resolved import Unresolved
from deploy.xml import BadXml

_GENERATION = re.compile(r'(?:W/)?"([0-9a-zA-Z._-]{1,64})"')


@dataclass(frozen=True, slots=True)
class LoadedDescription:
    """`contents`: of every reference in `information`, by URL as it stands there. `broken`: why the repository serves
    an older description than its directory holds, or ""."""

    url: str
    generation: str
    information: Information
    contents: Mapping[str, Content]
    broken: str = ""


async def load_description(url: str, client: HttpClient, fetcher: Fetcher) -> LoadedDescription:
    """Raises Unresolved when the repository does not give its information."""
    url = repository_url(url)
    answer = await client.fetch(url, limit_bytes=INFORMATION_LIMITS.bytes)
    found = _GENERATION.fullmatch(answer.headers.get("etag", ""))
    if found is None:
        raise Unresolved(f"{url}: expected a repository's generation as ETag, found none", again=False)
    try:
        information = read_information(answer.body, url)
    except BadXml as error:
        raise Unresolved(str(error), again=False) from None
    contents = await load_contents(information, fetcher)
    return LoadedDescription(url, found[1], information, contents, answer.headers.get("fabric-broken", ""))


async def load_contents(
    information: Information, fetcher: Fetcher, known: Mapping[str, Content] = MappingProxyType({})
) -> dict[str, Content]:
    """Of all references, by URL; at most as many at once as the fetcher allows. `known`: those that need no asking."""
    refs: dict[str, tuple[bool, Reference]] = {}
    for kind in KINDS:
        for entry in information.entries(kind):
            for ref in entry.refs:
                if ref.url not in known:
                    is_code, _ = refs.get(ref.url, (True, ref))
                    refs[ref.url] = (is_code and kind == "code", ref)
    found = await asyncio.gather(*(_content(is_code, ref, fetcher) for is_code, ref in refs.values()))
    return dict(zip(refs, found, strict=True)) | dict(known)


async def _content(is_code: bool, ref: Reference, fetcher: Fetcher) -> Content:
    try:
        if is_code:
            return Content(await fetcher.code_digest(ref))
        digest, document = await fetcher.document(ref)
        return Content(digest, document)
    except Unresolved as error:
        return Content(error=str(error))


async def description_of(folder: Folder, fetcher: Fetcher) -> LoadedDescription:
    """Of a directory that need not be served; `folder` has been looked at."""
    snapshot = folder.snapshot
    contents = await load_contents(snapshot.information, fetcher, snapshot.contents)
    return LoadedDescription(folder.base, snapshot.generation, snapshot.information, contents, folder.broken)
