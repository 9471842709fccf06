"""The directory (HPL-2001-321, section 2.3) in ZooKeeper: which boot stubs there are, and whose children are where.

    access.py   calls on one session: windows, and what is tried again
    stubs.py    the boot stub topology model
    tables.py   the managent topology model: claims, saves, walks
    pages.py    how a table lies in znodes; pure

Everything is persistent, and spread over shards, so that 100,000 of either strain neither a znode nor a list of
children (sizes: pages.py).
"""

from __future__ import annotations

from deploy.directory.access import READS_AT_ONCE, Access
from deploy.directory.stubs import NameTaken, Registered, StubDirectory, Stubs, Unreadable
from deploy.directory.tables import Claim, Fenced, TableDirectory
from zk.client import TreeClient

__all__ = [
    "Claim",
    "Directory",
    "Fenced",
    "NameTaken",
    "Registered",
    "StubDirectory",
    "Stubs",
    "TableDirectory",
    "Unreadable",
]


class Directory:
    """Over one session; all that share the session may share it."""

    def __init__(self, client: TreeClient, window: int = READS_AT_ONCE) -> None:
        access = Access(client, window)
        self.stubs = StubDirectory(access)
        self.tables = TableDirectory(access)
