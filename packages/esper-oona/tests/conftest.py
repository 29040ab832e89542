"""Shared by Oona's tests: samples of every payload, clients by URL, and async tests with a deadline."""

import asyncio
import inspect
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest

from esper.contracts import (
    BlueprintSubmitted,
    Bus,
    CheckResult,
    FieldReport,
    HealthSignal,
    KasminaCommand,
    KernelCharacterized,
    KernelReady,
    KernelSignature,
    Payload,
    SeedState,
    SiteKind,
    SystemStatePacket,
    TopicNames,
    ValidationReport,
)
from esper.contracts.registry import bus_factory
from esper.testkit.redis import BINARIES, RedisServer, redis_binary
from esper.testkit.redis_groups import Cluster, start_cluster

sys.path.insert(0, str(Path(__file__).parent))  # which pytest's importlib mode does not

type Connect = Callable[[str], AbstractAsyncContextManager[Bus]]
type MakeUrl = Callable[..., str]

_DEADLINE_SECONDS = 120.0
"""A failover takes seconds, on a busy machine many."""


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run `async def` tests in a loop of their own, with a deadline."""
    test = cast("Callable[..., Coroutine[Any, Any, None]]", pyfuncitem.obj)
    if not inspect.iscoroutinefunction(test):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(test).parameters}
    asyncio.run(asyncio.wait_for(test(**arguments), _DEADLINE_SECONDS))
    return True


@pytest.fixture
def connect() -> Connect:
    """Give an async context manager that opens a client of a URL, found as a run finds it."""

    @asynccontextmanager
    async def connected(url: str) -> AsyncGenerator[Bus]:
        bus = bus_factory(url)(url)
        await bus.open()
        try:
            yield bus
        finally:
            await bus.close()

    return connected


@pytest.fixture
def memory_url() -> MakeUrl:
    """Make URLs of one broker that no other test uses."""
    name = uuid4().hex

    def make(reclaim_after_seconds: float = 60.0, max_deliveries: int = 5) -> str:
        query = f"reclaim_after_seconds={reclaim_after_seconds}&max_deliveries={max_deliveries}"
        return f"memory://{name}?{query}"

    return make


def _url_maker(url: str) -> MakeUrl:
    prefix = uuid4().hex

    def make(reclaim_after_seconds: float = 60.0, max_deliveries: int = 5) -> str:
        query = f"reclaim_after_seconds={reclaim_after_seconds}&max_deliveries={max_deliveries}"
        return f"{url}?prefix={prefix}&{query}"

    return make


_REAL_SERVERS = ("redis-8", *(pytest.param(n, marks=pytest.mark.long) for n in BINARIES[1:]))
"""The others have what Redis 8 has, as far as the bus needs it; so they are asked less often."""


@pytest.fixture(params=_REAL_SERVERS)
def binary(request: pytest.FixtureRequest) -> str:
    """Name each server in turn, for tests that start their own; skips where it is missing."""
    try:
        redis_binary(request.param)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return request.param


@pytest.fixture(params=_REAL_SERVERS)
def redis_url(request: pytest.FixtureRequest) -> MakeUrl:
    """Make URLs of streams that no other test uses, on each server in turn."""
    redis_of = cast("Callable[[str], RedisServer]", request.getfixturevalue("redis_of"))
    return _url_maker(redis_of(request.param).url)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Give the whole test session one Redis Cluster of three nodes."""
    with start_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(
    params=["memory", *_REAL_SERVERS, pytest.param("cluster", marks=pytest.mark.long)],
)
def make_url(request: pytest.FixtureRequest) -> MakeUrl:
    """Make URLs of each backend in turn: the suites of the port run on all of them."""
    if request.param == "memory":
        return request.getfixturevalue("memory_url")
    if request.param == "cluster":
        return _url_maker(cast("Cluster", request.getfixturevalue("cluster")).url)
    redis_of = cast("Callable[[str], RedisServer]", request.getfixturevalue("redis_of"))
    return _url_maker(redis_of(request.param).url)


@pytest.fixture
def health() -> Callable[[int], HealthSignal]:
    """Make signals that differ by their epoch."""

    def make(epoch: int) -> HealthSignal:
        return HealthSignal(
            layer_id=1,
            seed_id=2,
            chunk_id=0,
            epoch=epoch,
            activation_variance=0.5,
            dead_neuron_ratio=0.25,
            avg_correlation=-0.125,
        )

    return make


@pytest.fixture
def samples(health: Callable[[int], HealthSignal]) -> dict[TopicNames, Payload]:
    """One payload for each topic; the health signal holds a value that JSON has no literal for."""
    signature = KernelSignature(kind=SiteKind.FEATURES, features=8)
    report = ValidationReport(
        kernel_id="a" * 64,
        validator_id="urabrask",
        passed=True,
        checks=(CheckResult(name="finite", passed=True, value=0.0, limit=0.0, detail="0 of 64"),),
        probe_shape=(4, 8),
        latency_us=12.5,
        memory_bytes=1024,
        num_parameters=72,
        flops=512,
    )
    payloads: list[Payload] = [
        health(3).model_copy(update={"activation_variance": float("inf")}),
        KasminaCommand(seed_id=(1, 0), target=SeedState.CULLED, epoch=3, reason="does not help"),
        BlueprintSubmitted(blueprint_id="b" * 64, signatures=(signature,)),
        KernelReady(kernel_id="a" * 64, blueprint_id="b" * 64, signature=signature),
        KernelCharacterized(report=report),
        SystemStatePacket(
            run_id="run", epoch=3, step=30, val_loss=0.5, learning_rate=0.1, num_parameters=7
        ),
        FieldReport(
            run_id="run",
            seed_id=(1, 0),
            site="body.0",
            kernel_id="a" * 64,
            blueprint_id="b" * 64,
            blueprint_name="bottleneck",
            outcome=SeedState.FOSSILIZED,
            reason="better with it",
            epoch_started=1,
            epoch_ended=3,
            parameters_added=72,
        ),
    ]
    return dict(zip(TopicNames, payloads, strict=True))
