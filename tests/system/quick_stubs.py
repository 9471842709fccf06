"""A process of boot stubs whose waits are short, so that what is lost is noticed soon:

python -m tests.system.quick_stubs DIRECTORY FOLDER NAME...
"""

from __future__ import annotations

import sys
from pathlib import Path

from deploy.settings import Settings
from deploy.stub.assembly import Surroundings, assembled
from deploy.stub.limits import StubSettings
from deploy.stub.process import run_stubs
from deploy.stub.settings import StubConfig

QUICK = Settings(
    beat_s=0.5,
    stub_lost_s=1.0,
    lost_ping_s=1.0,
    call_repeat_s=0.3,
    call_repeat_max_s=1.0,
    retry_min_s=0.1,
    report_s=0.1,
    save_s=0.3,
)


def main() -> int:
    directory, folder, *names = sys.argv[1:]
    settings = StubSettings(beat_s=QUICK.beat_s)
    configs = [StubConfig(name, Path(folder) / name, settings=settings) for name in names]
    around = Surroundings(Path(folder) / f"cache-{names[0]}", 1 << 28, directory=directory, initiators=QUICK)
    return run_stubs(configs, lambda shared: assembled(shared, around))


if __name__ == "__main__":
    sys.exit(main())
