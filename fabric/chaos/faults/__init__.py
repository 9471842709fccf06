"""Every kind of fault, by its verb: `FAULTS`. The verbs are those of the language (script.VERBS)."""

from __future__ import annotations

from collections.abc import Mapping

from fabric.chaos.faults import disks, instances, networks, processes, strangers
from fabric.chaos.stage import Fault

FAULTS: Mapping[str, Fault] = {
    "kill": processes.kill,
    "stop": processes.stop,
    "restart": processes.restart,
    "rot": disks.rot,
    "tear": disks.tear,
    "fill": disks.fill,
    "read-only": disks.read_only,
    "slow-disk": disks.slow_disk,
    "clock": processes.clock,
    "drag": processes.drag,
    "cut": networks.cut,
    "slow": networks.slow,
    "strangers": strangers.strangers,
    "end": instances.end,
    "hang": instances.hang,
}
