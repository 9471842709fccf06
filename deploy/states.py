"""The states of a managent and of its environment, and the commands between them (HPL-2001-321, 3.2, 3.3, 4.1)."""

from __future__ import annotations

from typing import Literal

EnvState = Literal["non-existent", "code loaded", "configured", "installed"]
"""Of the external environment (Figure 6)."""

LifeState = Literal["non-existent", "deployed", "configured", "active", "passive"]
"""Of the managent itself (Figure 7)."""

Verb = Literal[
    "deploy",
    "configure-env",
    "uninstall",
    "start",
    "shutdown",
    "restart",
    "activate",
    "deactivate",
    "configure-managent",
]
"""The commands of Table 1."""
