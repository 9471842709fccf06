"""Creating, scaling and deleting deployments: what is checked, what is written, and who is told.

Step 1 of the flow. All that is refused is refused before anything is written: unknown names, and what this fabric could
not hold even if it were empty. What is accepted is in ZooKeeper before the answer leaves, and from then on it survives
this process. Handing it to a leader (steps 2 and 3) happens in the background.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from fabric.api import ids, planning
from fabric.api.control import ControlPlane, wall_ms
from fabric.api.inventory import Inventory, what_would_do, why_impossible
from fabric.api.problems import (
    IMPOSSIBLE,
    KEY_REUSED,
    UNKNOWN_FLAVOR,
    UNKNOWN_IMAGE,
    ProblemError,
    conflict,
    invalid,
    not_found,
    unavailable,
)
from fabric.api.schemas import DeploymentRequest, DryRunView
from fabric.api.store import IdTaken, ImageChanged, KeyTaken, Versioned
from fabric.flavors import Flavor
from fabric.records import Deployment, Image, Share, Size, Spec
from fabric.resources import Resources
from fabric.roles.advice import smaller
from zk.tree import Stat

MAX_NAMES_TOLD = 20


class Deploying:
    def __init__(self, control: ControlPlane, inventory: Inventory) -> None:
        self._control = control
        self._inventory = inventory
        self._store = control.store

    async def create(self, request: DeploymentRequest, idempotency_key: str | None) -> Versioned[Deployment]:
        """The new deployment, or the one that this key made before."""
        key = ids.key_digest(idempotency_key) if idempotency_key else ""
        body = ids.body_digest(request)
        admitted = False
        for _ in range(self._control.limits.write_tries):
            stale: Stat | None = None
            if key:
                known, stale = await self._made_before(key, body)
                if known is not None:
                    return known
            flavor = self.flavor(request.flavor)
            image = await self.image(request.image)
            if not admitted:
                await self._control.require_leaders("compute", "storage")
                least = _least(request)
                await self._admit(
                    flavor.name, flavor.resources, least, request.max_per_node, request.max_per_rack,
                    self._smaller(flavor.resources),
                )  # fmt: skip
                admitted = True
            record = self._record(request, flavor, image.record, key)
            try:
                made = await self._store.create(record, image, body, stale)
            except ImageChanged:
                self._store.forget_image(request.image)
                continue
            except (IdTaken, KeyTaken):
                continue
            self._control.submit(made.record.id, made)
            return made
        raise unavailable("What this request refers to changes too often; nothing was changed. Try again.")

    async def plan(self, request: DeploymentRequest) -> DryRunView:
        """What would be placed now. Reserves nothing, and refuses nothing but unknown names: it says why."""
        flavor = self.flavor(request.flavor)
        await self.image(request.image)
        await self._control.require_leaders("compute")
        found = await planning.dry_run(
            self._control,
            ids.deployment_id(wall_ms(), self._control.rng),
            flavor.resources,
            self._smaller(flavor.resources),
            request.count,
            _least(request),
            request.policy,
            request.max_per_node,
            request.max_per_rack,
        )
        if found.feasible:
            return found
        never = await self._why_impossible(
            flavor.name, flavor.resources, _least(request), request.max_per_node, request.max_per_rack
        )
        by_dimension = [line for line in never if not line.startswith("rack ")]  # the racks are in there already
        return found.model_copy(update={"reasons": [*by_dimension, *found.reasons]})

    async def scale(self, deployment_id: str, count: int) -> Versioned[Deployment]:
        """Have `count` from now on. No change is made when that is so, or is being made so, already."""
        before = await self._store.deployment(deployment_id)
        _refuse_gone(before.record)
        if count > before.record.count:
            await self._control.require_leaders("compute")
            record = before.record
            spec = record.spec
            least = _scaled_least(record, count)
            await self._admit(
                spec.flavor, spec.resources, least, record.max_per_node, record.max_per_rack, (), record.plan
            )

        def update(record: Deployment) -> Deployment | None:
            _refuse_gone(record)
            complete = record.state == "running" and record.placed == count
            if record.count == count and (complete or not record.final):
                return None
            return msgspec.structs.replace(
                record,
                count=count,
                min_count=_scaled_least(record, count),
                generation=record.generation + 1,
                state="accepted",
                updated_ms=wall_ms(),
            )

        changed = await self._change(deployment_id, update)
        self._control.submit(deployment_id, changed)
        return changed

    async def delete(self, deployment_id: str) -> Versioned[Deployment]:
        """Stop all its instances and keep the record, as history, for a while. Idempotent."""

        def update(record: Deployment) -> Deployment | None:
            if record.gone:
                return None
            return msgspec.structs.replace(
                record, gone=True, generation=record.generation + 1, state="deleting", updated_ms=wall_ms()
            )

        changed = await self._change(deployment_id, update)
        if not changed.record.final:
            self._control.submit(deployment_id, changed)
        return changed

    async def _change(
        self, deployment_id: str, update: Callable[[Deployment], Deployment | None]
    ) -> Versioned[Deployment]:
        known = self._control.latest.known(asyncio.get_running_loop().time(), deployment_id)
        return await self._store.change(deployment_id, update, known)

    # --- names ---------------------------------------------------------------------------------------------------

    def flavor(self, name: str, field: str = "flavor") -> Flavor:
        flavors = self._control.config.flavors
        if name not in flavors:
            raise invalid(field, f"one of {', '.join(flavors)}", name, UNKNOWN_FLAVOR)
        return flavors[name]

    async def image(self, name: str) -> Versioned[Image]:
        await self._store.require_session()
        found = await self._store.known_image(name)
        if found is not None:
            return found
        names = await self._store.image_names()
        told = ", ".join(names[:MAX_NAMES_TOLD]) + (f", … ({len(names)} in all)" if len(names) > MAX_NAMES_TOLD else "")
        raise invalid("image", f"one of {told}" if names else "an image that was pushed; there is none yet", name,
                      UNKNOWN_IMAGE)

    # --- helpers -------------------------------------------------------------------------------------------------

    async def _made_before(self, key: str, body: str) -> tuple[Versioned[Deployment] | None, Stat | None]:
        """(what this idempotency key made, None), or (None, the stat of a key whose deployment is gone), or Nones."""
        await self._store.require_session()
        known = await self._store.key(key)
        if known is None:
            return None, None
        made = await self._store.find_deployment(known.record.deployment)
        if made is None:
            return None, known.stat
        if known.record.body != body:
            raise ProblemError(
                KEY_REUSED,
                f"Idempotency-Key: expected the body that it came with when it made {made.record.id}, found another; "
                "use a new key for a new request.",
            )
        return made, None

    async def _admit(
        self,
        flavor: str,
        need: Resources,
        least: int,
        max_per_node: int,
        max_per_rack: int,
        flavors: tuple[Size, ...],
        plan: tuple[Share, ...] = (),
    ) -> None:
        """`flavors`: to think of instead; `plan`: what of it is there already, and can only be scaled."""
        lines = await self._why_impossible(flavor, need, least, max_per_node, max_per_rack)
        if lines:
            found = await self._inventory.statuses("compute")
            would_do = what_would_do(need, least, max_per_node, max_per_rack, flavors, plan, found)
            raise ProblemError(
                IMPOSSIBLE,
                f"{least} instances of {flavor} do not fit in this fabric, even empty.",
                reasons=(*lines, *would_do),
            )

    def _smaller(self, wanted: Resources) -> tuple[Size, ...]:
        return smaller(wanted, {name: one.resources for name, one in self._control.config.flavors.items()})

    async def _why_impossible(
        self, flavor: str, need: Resources, least: int, max_per_node: int, max_per_rack: int
    ) -> tuple[str, ...]:
        """Empty also when too little is known: nobody is refused by old news, or while a rack has no leader."""
        for fresh in (False, True):
            found = await self._inventory.statuses("compute", fresh)
            lines = why_impossible(flavor, need, least, max_per_node, max_per_rack, found)
            if not lines:
                return ()
        if await self._store.racks_with_members("compute", [status.rack for status in found.racks]):
            return ()
        return lines

    def _record(self, request: DeploymentRequest, flavor: Flavor, image: Image, key: str) -> Deployment:
        now = wall_ms()
        return Deployment(
            id=ids.deployment_id(now, self._control.rng),
            name=request.name or request.image,
            spec=Spec(
                image=image.name,
                digest=image.digest,
                flavor=flavor.name,
                resources=flavor.resources,
                environment=dict(request.environment),
                restart=request.restart,
                stop_after_s=request.stop_after_s,
            ),
            count=request.count,
            min_count=_least(request),
            policy=request.policy,
            created_ms=now,
            updated_ms=now,
            max_per_node=request.max_per_node,
            max_per_rack=request.max_per_rack,
            labels=dict(request.labels),
            key=key,
            lost_after_s=request.lost_after_s,
            exclusive=request.exclusive,
            smaller=self._smaller(flavor.resources),
        )


def _least(request: DeploymentRequest) -> int:
    return request.count if request.min_count is None else request.min_count


def _scaled_least(record: Deployment, count: int) -> int:
    """All or nothing stays so; another `min_count` stays as it is, as far as `count` allows."""
    return count if record.min_count == record.count else min(record.min_count, count)


def _refuse_gone(record: Deployment) -> None:
    if record.gone:
        raise conflict(f"Deployment {record.id} is being deleted or was; make a new one.")


def unknown_deployment(deployment_id: str) -> ProblemError:
    return not_found("deployment", deployment_id, "GET /v1/deployments lists them.")
