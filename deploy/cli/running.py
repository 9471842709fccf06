"""Running what speaks with boot stubs and their directory; what is expected to go wrong becomes one line."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from deploy.at_work import TopError
from deploy.expansion import BadTree
from deploy.patterns import BadPattern
from fabric.cli.exits import Exit, Failure
from fabric.records import BadRecord
from fabric.traffic import BindFailed, PortInUse
from zk.connect import Unreachable
from zk.tree import TreeError

V = TypeVar("V")


def hush() -> None:
    """Nothing of each attempt to connect to the directory: what comes of them is said."""
    logging.getLogger("fabric.zk").setLevel(logging.CRITICAL)


def run(work: Coroutine[Any, Any, V]) -> V:
    """Raises Failure. Ctrl-C goes through as KeyboardInterrupt, when what was open is closed."""
    hush()
    try:
        return asyncio.run(work)
    except BadPattern as error:
        raise Failure(str(error), Exit.USAGE) from None
    except (TopError, BadTree, BadRecord, Unreachable, BindFailed, PortInUse) as error:
        raise Failure(str(error)) from None
    except TreeError as error:
        raise Failure(f"the directory: {type(error).__name__}: {error}") from None
