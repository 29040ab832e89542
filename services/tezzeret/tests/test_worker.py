"""The forge at work: from a message to kernels in a real library and an announcement."""

import asyncio
from collections.abc import Callable

import pytest

from esper.contracts import (
    BackendUnavailableError,
    BlueprintError,
    BlueprintIR,
    BlueprintStatus,
    BlueprintSubmitted,
    KernelQuery,
    KernelReady,
    KernelSignature,
    KernelStatus,
    Library,
    MessageError,
    NotFoundError,
    OperatorNode,
    SiteKind,
    TopicNames,
    Worker,
    WorkerContext,
    serve,
)
from esper.contracts.registry import bus_factory, worker_factory
from esper.tezzeret import make_worker

type MakeIR = Callable[..., BlueprintIR]
type MakeSignature = Callable[..., KernelSignature]


@pytest.fixture
def forge(library: Library) -> Worker:
    return make_worker(WorkerContext(library=library))


@pytest.fixture
def submitted(
    library: Library, make_ir: MakeIR, make_signature: MakeSignature
) -> BlueprintSubmitted:
    blueprint = library.submit_blueprint(make_ir())
    signatures = (make_signature(8), make_signature(16))
    return BlueprintSubmitted(blueprint_id=blueprint.blueprint_id, signatures=signatures)


def test_the_worker_is_found_by_name(library: Library) -> None:
    worker = worker_factory("tezzeret")(WorkerContext(library=library))
    assert worker.name == "tezzeret"
    assert worker.topics == {TopicNames.COMPILATION_BLUEPRINT_SUBMITTED}


def test_every_signature_gets_a_kernel_on_file(
    forge: Worker, library: Library, submitted: BlueprintSubmitted
) -> None:
    results = forge.handle(submitted)
    assert all(isinstance(ready, KernelReady) for ready in results)
    on_file = library.query(KernelQuery(status=KernelStatus.COMPILED))
    announced = {ready.kernel_id for ready in results if isinstance(ready, KernelReady)}
    assert {kernel.kernel_id for kernel in on_file} == announced
    wanted = {signature.key for signature in submitted.signatures}
    assert {kernel.signature.key for kernel in on_file} == wanted
    for kernel in on_file:
        assert len(library.read_artifact(kernel.kernel_id)) == kernel.size_bytes
    assert library.get_blueprint(submitted.blueprint_id).status is BlueprintStatus.COMPILED


def test_a_message_handled_twice_has_the_effect_of_once(
    forge: Worker, library: Library, submitted: BlueprintSubmitted
) -> None:
    first = forge.handle(submitted)
    records = library.query(KernelQuery(status=None))
    assert forge.handle(submitted) == first
    assert library.query(KernelQuery(status=None)) == records


def test_a_design_with_an_operator_that_is_not_here_is_left_to_other_forges(
    forge: Worker, library: Library, make_signature: MakeSignature
) -> None:
    node = OperatorNode(name="mix", op="fourier@1", inputs=("input",))
    ir = BlueprintIR(name="mine", kind=SiteKind.FEATURES, nodes=(node,))
    blueprint = library.submit_blueprint(ir)
    message = BlueprintSubmitted(
        blueprint_id=blueprint.blueprint_id, signatures=(make_signature(8),)
    )
    with pytest.raises(BackendUnavailableError, match="'mine' uses fourier@1, which is not regis"):
        forge.handle(message)
    assert library.query(KernelQuery(status=None)) == []


def test_an_unknown_blueprint_is_named(forge: Worker, submitted: BlueprintSubmitted) -> None:
    with pytest.raises(NotFoundError, match="f" * 12):
        forge.handle(submitted.model_copy(update={"blueprint_id": "f" * 64}))


def test_nothing_is_filed_when_one_signature_cannot_be_built(
    forge: Worker, library: Library, make_ir: MakeIR, make_signature: MakeSignature
) -> None:
    blueprint = library.submit_blueprint(make_ir("D//8"))
    wanted = BlueprintSubmitted(
        blueprint_id=blueprint.blueprint_id, signatures=(make_signature(8), make_signature(4))
    )
    with pytest.raises(BlueprintError, match="cannot be built for features-4-float32-cpu"):
        forge.handle(wanted)
    assert library.query(KernelQuery(status=None)) == []


def test_another_payload_is_refused(forge: Worker, submitted: BlueprintSubmitted) -> None:
    (ready, _) = forge.handle(submitted)
    with pytest.raises(MessageError, match="tezzeret got a KernelReady, not a BlueprintSubmitted"):
        forge.handle(ready)


def test_served_from_a_bus_it_announces_kernels_in_the_same_trace(
    forge: Worker, submitted: BlueprintSubmitted
) -> None:
    async def story() -> list[KernelReady]:
        bus = bus_factory("memory://")("memory://tezzeret-test")
        await bus.open()
        try:
            topics = [TopicNames.COMPILATION_KERNEL_READY]
            await bus.create_group(forge.topics, group="forge")
            await bus.create_group(topics, group="test")
            async with asyncio.TaskGroup() as tasks, asyncio.timeout(20):
                serving = tasks.create_task(serve(forge, bus, group="forge"))
                await bus.publish(submitted, sender_id="test", trace_id="run-1")
                ready: list[KernelReady] = []
                async for delivery in bus.subscribe(topics, group="test", consumer="test"):
                    payload = delivery.payload()
                    assert isinstance(payload, KernelReady)
                    assert delivery.message.trace_id == "run-1"
                    assert delivery.message.sender_id == "tezzeret"
                    ready.append(payload)
                    await delivery.ack()
                    if len(ready) == len(submitted.signatures):
                        break
                serving.cancel()
            return ready
        finally:
            await bus.close()

    assert asyncio.run(story()) == forge.handle(submitted)
