"""Every kind of fault, by its verb: `FAULTS`. The verbs are those of the language (script.VERBS)."""

from __future__ import annotations

from collections.abc import Mapping

from fabric.chaos.faults import disks, instances, processes
from fabric.chaos.stage import Fault

FAULTS: Mapping[str, Fault] = {
    "kill": processes.kill,
    "stop": processes.stop,
    "restart": processes.restart,
    "rot": disks.rot,
    "tear": disks.tear,
    "fill": disks.fill,
    "read-only": disks.read_only,
    "end": instances.end,
    "hang": instances.hang,
}
