"""From a command line to a supervisor on its own: `python -I -S -c "…; from fabric.drivers.detach import main; …"`.

Theory of operation. The lock first: there is one supervisor a state directory. Then its socket; once that listens it
forks away from whoever started it, so waiting for the first process is waiting until it is ready, and what goes wrong
until then is said on standard error, with an exit status. From there on, complaints go to `supervisor.err`.
"""

from __future__ import annotations

import os
import resource
import sys

from fabric.drivers.instance import INSTANCES
from fabric.drivers.procfs import hold_lock, sign_lock
from fabric.drivers.supervisor import Supervisor

LOCK, ERRORS = "supervisor.lock", "supervisor.err"
LOCK_WAIT_S = 2.0  # for a supervisor that is just leaving


def main() -> None:
    """Arguments: state directory, lifeline's file descriptor or "-", bytes of log an instance, seconds to linger."""
    state, lifeline, log_bytes, linger_s = sys.argv[1:5]
    os.chdir(state)
    os.umask(0o077)
    os.makedirs(INSTANCES, mode=0o700, exist_ok=True)
    lock = hold_lock(LOCK, LOCK_WAIT_S)
    if isinstance(lock, str):
        sys.exit(f"another supervisor, pid {lock}, holds {os.path.join(state, LOCK)}")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if lifeline != "-":
        os.set_inheritable(int(lifeline), False)
    supervisor = Supervisor(state, None if lifeline == "-" else int(lifeline), int(log_bytes), float(linger_s))
    supervisor.listen()
    if os.fork():
        os._exit(0)
    os.setsid()
    sign_lock(lock)
    for target, path in ((0, os.devnull), (1, os.devnull), (2, ERRORS)):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | (os.O_TRUNC if path == ERRORS else 0), 0o600)
        os.dup2(fd, target)
        os.close(fd)
    supervisor.run()
