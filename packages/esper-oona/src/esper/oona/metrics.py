"""Metrics for Prometheus: `start_metrics(bus, 9464)`; needs the extra `esper-oona[metrics]`.

Nothing is counted here: a scrape reads what the bus counts anyway (`Bus.traffic`, `Bus.lost`) and asks
how it stands (`Bus.health`), in the thread that answers the scrape.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from esper.contracts import (
    LATENCY_BOUNDS_SECONDS,
    BackendUnavailableError,
    Bus,
    BusHealth,
    BusTraffic,
    ConfigError,
    GroupHealth,
    GroupTraffic,
    TopicNames,
)

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_GROUP = ("topic", "group")
_GROUP_GAUGES = {
    "lag": "Messages that no consumer of the group was handed yet.",
    "in_flight": "Messages handed out and not acknowledged.",
    "oldest_in_flight_seconds": "Age of the oldest message in flight.",
    "dead_letters": "Messages set aside.",
    "group_lost": "Messages that went before the group had acknowledged them, since it was created.",
    "consumers": "Consumers that the bus knows.",
}


@dataclass(frozen=True)
class MetricsServer:
    """Answers scrapes until it is closed."""

    port: int
    _server: Any
    _thread: Any

    def close(self) -> None:
        """Stop answering; again is harmless."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def start_metrics(bus: Bus, port: int, *, host: str = "127.0.0.1") -> MetricsServer:
    """Answer scrapes of `http://host:port/metrics` about this client and its bus, in a thread.

    Args:
        bus: open or not; a bus that is away is a metric too.
        port: 0 for any that is free.
        host: the address to listen at; only this machine can reach the default.

    Raises:
        ConfigError: if prometheus-client is not installed.
        BackendUnavailableError: if the address cannot be listened at.

    """
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError:
        raise ConfigError(
            "metrics need prometheus-client, which is not installed; install esper-oona[metrics]"
        ) from None
    registry = CollectorRegistry()
    registry.register(BusCollector(bus))  # pyright: ignore[reportArgumentType]
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except (OSError, OverflowError) as error:
        raise BackendUnavailableError(
            f"metrics cannot be served at {host}:{port} ({error}); give another port or host"
        ) from error
    return MetricsServer(server.server_port, server, thread)


class BusCollector:
    """Turns what a bus says about itself into metrics; a `Collector` of prometheus-client."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def describe(self) -> Iterable["Metric"]:
        """Return nothing: registering must not ask the server."""
        return ()

    def collect(self) -> Iterator["Metric"]:
        """Yield every metric as it is now."""
        state = asyncio.run(self._bus.health())
        yield from _of_traffic(self._bus.traffic, self._bus.lost)
        yield from _of_state(state)


def _of_traffic(traffic: BusTraffic, lost: Mapping[TopicNames, int]) -> Iterator["Metric"]:
    from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily

    for name, text, counts in (
        ("published", "Messages that this client published and the bus took.", traffic.published),
        ("lost", "Messages that this client knows to be lost.", lost),
    ):
        metric = CounterMetricFamily(f"esper_bus_{name}", text, labels=["topic"])
        for topic in TopicNames:
            metric.add_metric([topic.value], counts.get(topic, 0))
        yield metric
    for name, text in (
        ("received", "Messages that consumers of this client were handed."),
        ("redelivered", "Those that had been handed out before, to anybody."),
        ("acknowledged", "Messages that consumers of this client handled."),
        ("dead_lettered", "Messages that consumers of this client set aside."),
    ):
        metric = CounterMetricFamily(f"esper_bus_{name}", text, labels=_GROUP)
        for group in traffic.groups:
            metric.add_metric([group.topic.value, group.group], getattr(group, f"num_{name}"))
        yield metric
    text = "From the bus having a message until it was acknowledged."
    latency = HistogramMetricFamily("esper_bus_latency_seconds", text, labels=_GROUP)
    for group in traffic.groups:
        labels = [group.topic.value, group.group]
        latency.add_metric(labels, _buckets(group), sum_value=group.latency_seconds)
    yield latency


def _buckets(group: GroupTraffic) -> list[tuple[str, float]]:
    """Return the counts as Prometheus wants them: each includes those of the smaller bounds."""
    total, buckets = 0, list[tuple[str, float]]()
    bounds = [*map(str, LATENCY_BOUNDS_SECONDS), "+Inf"]
    for bound, count in zip(bounds, group.latency_counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets


def _of_state(state: BusHealth) -> Iterator["Metric"]:
    from prometheus_client.metrics_core import GaugeMetricFamily

    yield GaugeMetricFamily("esper_bus_up", "1 if the bus answers.", value=state.is_reachable)
    text = "Messages of this client on their way to the bus."
    yield GaugeMetricFamily("esper_bus_queued", text, value=state.num_queued)
    if state.round_trip_seconds is not None:
        text = "How long the server took to answer."
        yield GaugeMetricFamily(
            "esper_bus_round_trip_seconds", text, value=state.round_trip_seconds
        )
    kept = GaugeMetricFamily("esper_bus_messages", "Messages that a topic holds.", labels=["topic"])
    for topic in state.topics:
        kept.add_metric([topic.topic.value], topic.length)
    yield kept
    for name, text in _GROUP_GAUGES.items():
        gauge = GaugeMetricFamily(f"esper_bus_{name}", text, labels=_GROUP)
        for topic in state.topics:
            for group in topic.groups:
                gauge.add_metric([group.topic.value, group.group], _of_group(group)[name])
        yield gauge


def _of_group(group: GroupHealth) -> dict[str, float]:
    """Return the value of each of `_GROUP_GAUGES`."""
    return {
        "lag": group.lag,
        "in_flight": group.num_in_flight,
        "oldest_in_flight_seconds": group.oldest_in_flight_seconds or 0.0,
        "dead_letters": group.num_dead_letters,
        "group_lost": group.num_lost,
        "consumers": len(group.consumers),
    }
