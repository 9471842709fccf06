"""A front as a process: `python -m tests.unit.local.frontling FOLDER KEEPER`. Says "up", and stays."""

from __future__ import annotations

import sys
from pathlib import Path

from fabric.local.front import Front
from fabric.local.interrupts import Interrupted, Interrupts
from fabric.local.spec import make_spec

if __name__ == "__main__":
    spec = make_spec(folder=Path(sys.argv[1]), racks=2, compute=2, storage=1, session_timeout_s=2.0)
    front = Front(spec, sys.argv[2])
    with Interrupts() as interrupts:
        try:
            front.start()
            front.wait_up(lambda report: None, interrupts)
            print("up", flush=True)
            front.wait_end(interrupts)
        except Interrupted as interrupted:
            sys.exit(interrupted.code)
        finally:
            front.stop()
