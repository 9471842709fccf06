"""What Prometheus reads: requests served, and the state of the session, the bus and the leaders.

A collection of its own, so that two applications in one process (tests) don't share counters. What other objects count
already is read from them when it is asked for, and not counted twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fabric.api.control import ControlPlane
from fabric.api.pushing import Pushing
from fabric.roles.client import Statuses
from zk.paths import LAYERS
from zk.tree import SessionState

_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    def __init__(self, control: ControlPlane, pushing: Pushing) -> None:
        self._own = CollectorRegistry()
        self.requests = Counter(
            "fabric_api_requests", "Requests answered.", ("method", "route", "status"), registry=self._own
        )
        self.seconds = Histogram(
            "fabric_api_request_seconds",
            "Until the answer was complete, waits of long-polls included.",
            ("method", "route"),
            buckets=_BUCKETS,
            registry=self._own,
        )
        self.in_flight = Gauge("fabric_api_requests_in_flight", "Requests being served.", registry=self._own)
        self.deployments = Counter(
            "fabric_api_deployments", "Deployments written, by what for.", ("change",), registry=self._own
        )
        self.image_bytes = Counter("fabric_api_image_bytes", "Bytes of images taken.", registry=self._own)
        self._state = _State(control, pushing)
        self._own.register(self._state)

    def text(self, storage: Statuses | None) -> bytes:
        """`storage`: what the storage leaders said just now, if they did."""
        self._state.storage = storage
        return generate_latest(self._own)


class _State(Collector):
    def __init__(self, control: ControlPlane, pushing: Pushing) -> None:
        self._control = control
        self._pushing = pushing
        self.storage: Statuses | None = None

    def collect(self) -> Iterable[Metric]:
        control = self._control
        connected = float(control.state is SessionState.CONNECTED)
        yield GaugeMetricFamily("fabric_api_zookeeper_connected", "1: the session is connected.", value=connected)
        yield from _labelled(
            "fabric_api_zookeeper_operations", "Operations sent to ZooKeeper.", "kind", control.tree.operations
        )
        leaders = GaugeMetricFamily("fabric_api_leaders", "Racks that have a leader.", labels=("layer",))
        for layer in LAYERS:
            leaders.add_metric((layer,), len(control.leaders(layer)))
        yield leaders
        yield GaugeMetricFamily("fabric_api_watchers", "Long-polls and streams.", value=len(control.watches))
        yield GaugeMetricFamily(
            "fabric_api_followed", "Deployments that are being seen through.", value=control.client.followed
        )
        yield GaugeMetricFamily("fabric_api_pushes", "Images being pushed.", value=self._pushing.under_way)
        if self.storage is not None and not self.storage.silent_racks:
            racks = self.storage.racks
            yield GaugeMetricFamily(
                "fabric_images_lacking",
                "Image contents that have too few holders, all of them in one rack, or a damaged copy.",
                value=sum(rack.images_lacking for rack in racks),
            )
            yield GaugeMetricFamily(
                "fabric_images_lost",
                "Those of them that nobody who is here has whole.",
                value=sum(rack.images_lost for rack in racks),
            )
        if control.bus is not None:
            bus = control.bus.counters
            yield from _labelled("fabric_api_bus_sent", "Messages sent to peers.", "message", bus.sent)
            yield from _labelled("fabric_api_bus_received", "Messages of peers.", "message", bus.received)
            yield from _labelled("fabric_api_bus_bad", "Frames that were refused.", "cause", bus.bad)
            yield from _labelled("fabric_api_bus_dropped", "Messages that could not be sent.", "cause", bus.dropped)
            yield CounterMetricFamily("fabric_api_bus_stale", "Frames for an earlier incarnation.", value=bus.stale)


def _labelled(name: str, about: str, label: str, counts: Mapping[str, int]) -> Iterator[Metric]:
    family = CounterMetricFamily(name, about, labels=(label,))
    for value, count in sorted(counts.items()):
        family.add_metric((value,), count)
    yield family
