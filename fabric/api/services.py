"""What the routes work with: one object an application, made once, found by `Depends(services)`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from fabric.api.auditing import Auditing
from fabric.api.contents import Contents
from fabric.api.control import ControlPlane
from fabric.api.deploying import Deploying
from fabric.api.fleet import Fleet
from fabric.api.instances import Instances
from fabric.api.inventory import Inventory
from fabric.api.metrics import Metrics
from fabric.api.pushing import Pushing


@dataclass(frozen=True, slots=True)
class Services:
    control: ControlPlane
    inventory: Inventory
    fleet: Fleet
    auditing: Auditing
    deploying: Deploying
    instances: Instances
    contents: Contents
    pushing: Pushing
    metrics: Metrics

    @classmethod
    def over(cls, control: ControlPlane) -> Services:
        inventory = Inventory(control)
        fleet = Fleet(control)
        contents = Contents(control)
        pushing = Pushing(control, contents)
        return cls(
            control,
            inventory,
            fleet,
            Auditing(control),
            Deploying(control, inventory),
            Instances(control, inventory),
            contents,
            pushing,
            Metrics(control, pushing, fleet),
        )


def services(request: Request) -> Services:
    found = request.app.state.services
    assert isinstance(found, Services)
    return found


ServicesDep = Annotated[Services, Depends(services)]
