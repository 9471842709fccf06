"""Python classes run inside the boot stub: the paper's Java class (HPL-2001-321, 2.2, 4.3, Figure 9).

A class is plain: it inherits from nothing of ours, and every method is optional.

    class SimpleAgent:
        def __init__(self, context): ...     # or no __init__ at all
        def install(self, context): ...      # installation code; may return a start command
        def uninstall(self, context): ...    # reverses it
        def activate(self): ...              # start, or go on
        def deactivate(self): ...            # come to rest; no work may be lost; return when it is done
        def shutdown(self): ...              # end

`install` and `uninstall` get a context with the installation's parameters, on an object made for that call; the others
are called on one object, whose context has the managent's. A class with none of the last three is installation code
alone.

Methods run on the threads of a pool, with a limit of time: an exception or a method that blocks fails the command, and
nothing else. Not on the loop's thread, which one `time.sleep` in somebody's class would stop for every managent of the
process; not on a thread for each managent either, so a class that has work to do all the time starts its own in
`activate`. One call costs about 20 µs that way (deploy.stub.pool).

A module is executed once for each content in a process, however many managents are made of it.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import blake3

from deploy.stub.pool import Pool, PoolError

MAX_MODULES = 256
MAX_SOURCE_BYTES = 1 << 20
"""Of a module: it is read and hashed on the loop."""
DEFAULT_CLASS = "Managent"
RUNNABLE = ("activate", "deactivate", "shutdown")
log = logging.getLogger("deploy.managent")


@dataclass(frozen=True, slots=True)
class Context:
    """What a class is told. `env`, `args`: as a program would get them in its environment and command line."""

    id: str
    directory: Path
    parent: str
    stub: str
    env: Mapping[str, str] = field(default_factory=dict)
    args: Mapping[str, str] = field(default_factory=dict)
    _fail: Callable[[str], None] = field(default=lambda reason: None, repr=False)

    def log(self, text: str) -> None:
        """A line in the boot stub's log."""
        log.info("%s: %s", self.id, text)

    def fail(self, reason: str) -> None:
        """The managent can't go on: its initiator hears of it. From any thread."""
        self._fail(reason)


class ClassError(Exception):
    """A class could not be found, or one of its methods raised, or did not return."""


class Classes:
    """The modules of a process, and the pool that runs what is in them. `limit_s`: for one call."""

    def __init__(self, pool: Pool, limit_s: float) -> None:
        self._pool, self._limit_s = pool, limit_s
        self._modules: OrderedDict[str, ModuleType] = OrderedDict()
        self._loading: dict[str, asyncio.Task[ModuleType]] = {}

    async def load(self, file: Path, name: str) -> type:
        """Raises ClassError, OSError."""
        source = _read(file)
        key = blake3.blake3(source).hexdigest(16)
        module = self._modules.get(key)
        if module is None:
            module = await self._load(key, file, source)
        self._modules.move_to_end(key)
        found = getattr(module, name, None)
        if not isinstance(found, type):
            classes = sorted(one for one, value in vars(module).items() if isinstance(value, type))
            raise ClassError(
                f"code {file.name}: expected a class {name}, found {', '.join(classes[:10]) or 'no class'}; the "
                'configuration names it: <managent class="…"/>'
            )
        return found

    async def call_once(self, cls: type, method: str, context: Context) -> Any:
        """On an object made for this one call of `install` or `uninstall`. Raises ClassError."""
        what = f"{cls.__name__}.{method}"
        return await self.call(lambda: getattr(_made(cls, context), method)(context), what)

    async def call(self, run: Callable[[], Any], what: str) -> Any:
        """Raises ClassError."""
        try:
            return await self._pool.call(run, self._limit_s)
        except PoolError as error:
            raise ClassError(f"{what}: {error}") from None
        except Exception as error:
            raise ClassError(f"{what}: {type(error).__name__}: {str(error)[:500]}") from error

    async def _load(self, key: str, file: Path, source: bytes) -> ModuleType:
        """Once, however many ask at the same time."""
        loading = self._loading.get(key)
        if loading is None:
            run = self.call(lambda: _execute(key, file, source), file.name)
            loading = self._loading[key] = asyncio.get_running_loop().create_task(run)
            loading.add_done_callback(lambda _: self._loading.pop(key, None))
        module = await asyncio.shield(loading)
        self._modules[key] = module
        while len(self._modules) > MAX_MODULES:
            sys.modules.pop(self._modules.popitem(last=False)[1].__name__, None)
        return module


def is_runnable(cls: type) -> bool:
    """It is a managent, and not installation code alone."""
    return any(callable(getattr(cls, name, None)) for name in RUNNABLE)


def has(cls: type, method: str) -> bool:
    return callable(getattr(cls, method, None))


class ClassManagent:
    """One running object."""

    def __init__(self, cls: type, context: Context, classes: Classes) -> None:
        self.name = cls.__name__
        self._cls, self._context, self._classes = cls, context, classes
        self._object: Any = None

    async def make(self, active: bool) -> None:
        """Raises ClassError."""

        def run() -> Any:
            made = _made(self._cls, self._context)
            if active and has(self._cls, "activate"):
                made.activate()
            return made

        self._object = await self._classes.call(run, f"{self.name}.activate")

    async def tell(self, method: str) -> None:
        """activate, deactivate, shutdown; nothing when it has no such method. Raises ClassError."""
        if has(self._cls, method):
            await self._classes.call(getattr(self._object, method), f"{self.name}.{method}")


def _made(cls: type, context: Context) -> Any:
    return cls() if cls.__init__ is object.__init__ else cls(context)  # type: ignore[misc]


def _read(file: Path) -> bytes:
    with file.open("rb") as opened:
        source = opened.read(MAX_SOURCE_BYTES + 1)
    if len(source) > MAX_SOURCE_BYTES:
        raise ClassError(f"code {file.name}: expected at most {MAX_SOURCE_BYTES:,} bytes of Python, found more")
    return source


def _execute(key: str, file: Path, source: bytes) -> ModuleType:
    module = ModuleType(f"managent_{key}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # dataclasses look there
    try:
        exec(compile(source, str(file), "exec"), vars(module))
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module
