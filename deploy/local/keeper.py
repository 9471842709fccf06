"""`python -m deploy.local.keeper LEASH`: the keeper of a local fabric whose agents are deployed as managents."""

from __future__ import annotations

import sys

from deploy.local.crew import DeployedCrew
from fabric.local.keeper import main

if __name__ == "__main__":
    sys.exit(main(DeployedCrew))
