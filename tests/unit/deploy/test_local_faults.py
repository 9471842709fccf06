"""Agents that are deployed as managents have step hooks as others do: with `fabric up --faults`, and never without."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local.description import environment
from fabric.config import agent_config
from fabric.local.folder import Folder
from fabric.local.spec import make_spec


@pytest.mark.parametrize("faults", [True, False])
def test_agents_are_told_where_faults_are_if_they_are_to_have_some(tmp_path: Path, faults: bool):
    spec = make_spec(folder=tmp_path, faults=faults)
    found = environment(spec, "127.0.0.1:2181")
    assert found.get("FABRIC_FAULTS") == (str(Folder(tmp_path.resolve()).faults) if faults else None)
    own = {"FABRIC_NODE": "r1c01", "FABRIC_RACK": "r1", "FABRIC_STATE_DIR": str(tmp_path)}
    del found["FABRIC_CLUSTER_KEY_FILE"]
    config = agent_config(environment={**found, **own})
    assert config.faults == (Folder(tmp_path.resolve()).faults if faults else None)
