"""What an instance needs and what a node has: vcpus (count), memory (MiB), disk (MiB). Pure arithmetic."""

from __future__ import annotations

import math
from typing import Annotated, Self

import msgspec

Amount = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]

DIMENSIONS = ("vcpus", "memory_mib", "disk_mib")


class Resources(msgspec.Struct, frozen=True):
    vcpus: Amount
    memory_mib: Amount
    disk_mib: Amount

    def __add__(self, other: Self) -> Resources:
        return Resources(
            self.vcpus + other.vcpus, self.memory_mib + other.memory_mib, self.disk_mib + other.disk_mib
        )

    def minus(self, other: Resources) -> Resources:
        """What is left, never below zero: a node that was made smaller than what runs on it has nothing free."""
        return Resources(
            max(0, self.vcpus - other.vcpus),
            max(0, self.memory_mib - other.memory_mib),
            max(0, self.disk_mib - other.disk_mib),
        )

    def times(self, count: int) -> Resources:
        return Resources(self.vcpus * count, self.memory_mib * count, self.disk_mib * count)

    def scaled(self, vcpus: float, memory: float, disk: float) -> Resources:
        """With overcommit ratios applied, rounded down."""
        return Resources(
            math.floor(self.vcpus * vcpus), math.floor(self.memory_mib * memory), math.floor(self.disk_mib * disk)
        )

    def holds(self, need: Resources) -> int:
        """How many times `need` fits in here. A dimension of which nothing is needed does not limit."""
        counts = self._counts(need)
        return min(counts) if counts else 0

    def shortest(self, need: Resources) -> str:
        """The dimension that limits how often `need` fits."""
        counts = self._counts(need)
        if not counts:
            return "vcpus"
        needed = (name for name, amount in zip(DIMENSIONS, need.amounts, strict=True) if amount)
        return min(zip(counts, needed, strict=True), key=lambda one: one[0])[1]

    @property
    def amounts(self) -> tuple[int, int, int]:
        """In the order of DIMENSIONS."""
        return self.vcpus, self.memory_mib, self.disk_mib

    def _counts(self, need: Resources) -> list[int]:
        """How often `need` fits, a number for each dimension of which something is needed. (Spelled out: a rack leader
        does it for all its agents at every question for offers.)"""
        counts = []
        if need.vcpus:
            counts.append(self.vcpus // need.vcpus)
        if need.memory_mib:
            counts.append(self.memory_mib // need.memory_mib)
        if need.disk_mib:
            counts.append(self.disk_mib // need.disk_mib)
        return counts

    def __str__(self) -> str:
        return f"{self.vcpus} vcpus, {self.memory_mib} MiB memory, {self.disk_mib} MiB disk"


ZERO = Resources(0, 0, 0)
