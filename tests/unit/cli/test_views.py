"""What the commands read of an answer is what the API declares: the same names, in the same places."""

from __future__ import annotations

import msgspec
import pytest

from fabric.api import schemas
from fabric.cli import views

PAIRS: list[tuple[type[msgspec.Struct], type[schemas.Model]]] = [
    (views.Share, schemas.ShareView),
    (views.Deployment, schemas.DeploymentView),
    (views.RackOffer, schemas.RackOffer),
    (views.Advice, schemas.AdviceView),
    (views.DryRun, schemas.DryRunView),
    (views.Instance, schemas.InstanceItem),
    (views.Node, schemas.NodeView),
    (views.Rack, schemas.RackView),
    (views.Leader, schemas.LeaderView),
    (views.Flavor, schemas.FlavorView),
    (views.RackCapacity, schemas.RackCapacity),
    (views.Capacity, schemas.CapacityView),
    (views.Cordon, schemas.CordonView),
    (views.Image, schemas.ImageView),
    (views.ImageDeleted, schemas.ImageDeletedView),
    (views.Health, schemas.HealthView),
]


@pytest.mark.parametrize(("view", "schema"), PAIRS)
def test_every_field_that_is_shown_is_one_of_the_api(view: type[msgspec.Struct], schema: type[schemas.Model]) -> None:
    assert set(view.__struct_fields__) <= set(schema.model_fields)


def test_every_view_is_compared() -> None:
    known = {view for view, _ in PAIRS} | {views.Page, views.Flavors}
    ours = {
        value
        for value in vars(views).values()
        if isinstance(value, type) and issubclass(value, msgspec.Struct) and value.__module__ == views.__name__
    }
    assert ours == known
