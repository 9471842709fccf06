"""A boot stub in the real world: bus, journal, folder, programs, and the state machine in their midst."""

from __future__ import annotations

from deploy.hosting import NewInitiator
from deploy.records import StubRef
from deploy.resolved import Resolver
from deploy.stub.launcher import Launcher
from deploy.stub.settings import Register, StubConfig
from deploy.stub.shared import Shared


class StubHost:
    """Make it on the loop; `run` it once. `shared`: what all boot stubs of a process have in common. `resolver` is the
    caller's to close, and may be shared. `register`: writes the record into the directory, None for none."""

    def __init__(
        self,
        config: StubConfig,
        shared: Shared,
        resolver: Resolver,
        *,
        new_initiator: NewInitiator | None = None,
        register: Register | None = None,
        launcher: Launcher | None = None,
    ) -> None:
        self.config = config
        self._shared = shared
        self._resolver = resolver
        self._new_initiator = new_initiator
        self._register = register
        self._launcher = launcher

    @property
    def ref(self) -> StubRef:
        """Where it is reached; address "" before it listens."""
        raise NotImplementedError

    async def run(self) -> int:
        """Until it ends; returns the exit code, and has logged why if that is not 0."""
        raise NotImplementedError

    async def listening(self) -> StubRef:
        """Returns when it takes commands. Raises RuntimeError when it ended before."""
        raise NotImplementedError

    def leave(self) -> None:
        """End; see `StubConfig.stop_managents`."""
        raise NotImplementedError
