"""Counting what a client moves, and scraping it over HTTP as Prometheus does, on every backend."""

import asyncio
import sys
import urllib.request
from collections.abc import Callable, Generator
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from esper.contracts import (
    LATENCY_BOUNDS_SECONDS,
    BackendUnavailableError,
    Bus,
    ConfigError,
    HealthSignal,
    TopicNames,
)
from esper.contracts.registry import bus_factory
from esper.oona.metrics import MetricsServer, start_metrics
from esper.oona.traffic import GroupTally

HEALTH = TopicNames.TELEMETRY_SEED_HEALTH
CONTROL = TopicNames.CONTROL_KASMINA_COMMANDS

type Connect = Callable[[str], AbstractAsyncContextManager[Bus]]
type MakeUrl = Callable[..., str]
type Health = Callable[[int], HealthSignal]
type Values = dict[tuple[str, str], float]


async def _handle(bus: Bus, health: Health) -> None:
    """Publish five; acknowledge three of them, one in its second try, and set one aside."""
    await bus.create_group([HEALTH], group="tamiyo")
    await bus.publish_many([health(0), health(1)], sender_id="test", trace_id="run")
    await bus.publish(health(2), sender_id="test", trace_id="run")
    bus.publish_nowait(health(3), sender_id="test", trace_id="run")
    bus.publish_nowait(health(4), sender_id="test", trace_id="run")
    assert await bus.flush(10)
    async with aclosing(bus.subscribe([HEALTH], group="tamiyo", consumer="one")) as deliveries:
        await (await anext(deliveries)).ack()
        await (await anext(deliveries)).dead_letter("no good")
        await (await anext(deliveries)).nack()
        num_acknowledged = 1
        while num_acknowledged < 3:
            await (await anext(deliveries)).ack()
            num_acknowledged += 1


@pytest.mark.parametrize("prefetch", [1, 100])
async def test_a_client_counts_what_it_moves(
    make_url: MakeUrl, connect: Connect, health: Health, prefetch: int
) -> None:
    async with connect(make_url()) as bus:
        assert (bus.traffic.published, bus.traffic.groups) == ({}, [])
        await bus.create_group([HEALTH], group="tamiyo")
        payloads = [health(epoch) for epoch in range(40)]
        await bus.publish_many(payloads, sender_id="test", trace_id="run")
        subscription = bus.subscribe([HEALTH], group="tamiyo", consumer="one", prefetch=prefetch)
        async with aclosing(subscription) as deliveries:
            await (await anext(deliveries)).dead_letter("no good")
            first = await anext(deliveries)
            await first.nack()
            counts: list[int] = []
            for _ in range(39):
                delivery = await anext(deliveries)
                counts.append(delivery.delivery_count)
                await delivery.ack()
        traffic = bus.traffic
    assert sorted(counts) == [1] * 38 + [2]
    assert traffic.published == {HEALTH: 40}
    [group] = traffic.groups
    assert (group.topic, group.group) == (HEALTH, "tamiyo")
    assert (group.num_received, group.num_redelivered) == (41, 1)
    assert (group.num_acknowledged, group.num_dead_lettered) == (39, 1)
    assert sum(group.latency_counts) in (3, 39)  # in memory one in sixteen is measured
    assert len(group.latency_counts) == len(LATENCY_BOUNDS_SECONDS) + 1


async def test_what_was_tried_too_often_counts_as_set_aside(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url(max_deliveries=1)) as bus:
        await bus.create_group([HEALTH], group="fails")
        await bus.publish_many([health(0), health(1)], sender_id="test", trace_id="run")
        async with aclosing(bus.subscribe([HEALTH], group="fails", consumer="one")) as deliveries:
            failed = await anext(deliveries)
            await failed.nack()
            other = await anext(deliveries)
            await other.ack()
            waiting = asyncio.ensure_future(anext(deliveries))
            while not await bus.dead_letters():
                await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        [group] = bus.traffic.groups
    assert (group.num_acknowledged, group.num_dead_lettered) == (1, 1)


async def test_a_scrape_over_http_says_it_all(
    make_url: MakeUrl, connect: Connect, health: Health
) -> None:
    async with connect(make_url()) as bus:
        await _handle(bus, health)
        with _serving(bus) as server:
            values = await asyncio.to_thread(_scrape, server.port)
    told = {name: value for (name, topic), value in values.items() if topic in ("", HEALTH)}
    assert told["esper_bus_up"] == 1
    assert told["esper_bus_published_total"] == 5
    assert told["esper_bus_lost_total"] == 0
    assert told["esper_bus_received_total"] == 5
    assert told["esper_bus_acknowledged_total"] == 3
    assert told["esper_bus_redelivered_total"] in (0, 1)  # Redis hands out new ones in between
    assert told["esper_bus_dead_lettered_total"] == 1
    assert told["esper_bus_dead_letters"] == 1
    assert told["esper_bus_lag"] + told["esper_bus_in_flight"] == 1
    assert told["esper_bus_queued"] == 0
    assert told["esper_bus_latency_seconds_count"] >= 1
    assert told["esper_bus_latency_seconds_bucket"] == told["esper_bus_latency_seconds_count"]
    assert values["esper_bus_published_total", CONTROL] == 0


async def test_a_bus_that_is_away_is_a_metric_too(connect: Connect) -> None:
    url = "redis://127.0.0.1:1/0"
    with _serving(bus_factory(url)(url)) as server:
        values = await asyncio.to_thread(_scrape, server.port)
    assert values["esper_bus_up", ""] == 0
    assert values["esper_bus_published_total", HEALTH] == 0


def test_the_same_port_twice_is_refused(memory_url: MakeUrl) -> None:
    url = memory_url()
    bus = bus_factory(url)(url)
    with (
        _serving(bus) as server,
        pytest.raises(BackendUnavailableError, match=rf"127.0.0.1:{server.port} .* another port"),
    ):
        start_metrics(bus, server.port)


def test_without_prometheus_client_the_extra_is_named(
    memory_url: MakeUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    url = memory_url()
    with pytest.raises(ConfigError, match=r"install esper-oona\[metrics\]"):
        start_metrics(bus_factory(url)(url), 0)


@given(ages_ms=st.lists(st.integers(0, 5_000_000) | st.integers(0, 60), min_size=1, max_size=50))
def test_latencies_that_are_counted_together_are_counted_right(ages_ms: list[int]) -> None:
    now = 1_764_000_000
    ids = [f"{now * 1000 - age}-{number}".encode() for number, age in enumerate(ages_ms)]
    together, alone = GroupTally(), GroupTally()
    with patch("esper.oona.traffic.time", return_value=float(now)):
        together.count_acknowledged(ids)
    for age in ages_ms:
        alone.count_latency(age / 1000)
    assert together.latency_counts == alone.latency_counts
    assert together.acknowledged == len(ages_ms)
    evenly_spread = len(ages_ms) * (min(ages_ms) + max(ages_ms)) / 2000
    assert together.latency_seconds == pytest.approx(evenly_spread)


@contextmanager
def _serving(bus: Bus) -> Generator[MetricsServer]:
    server = start_metrics(bus, 0)
    try:
        yield server
    finally:
        server.close()


def _scrape(port: int) -> Values:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    return {
        (sample.name, sample.labels.get("topic", "")): (sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
