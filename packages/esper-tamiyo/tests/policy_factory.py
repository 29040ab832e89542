"""Makes what policies see, without a run: sites, seeds, kernels, health, outcomes."""

import dataclasses

from esper.contracts import (
    CompiledKernelArtifact,
    FieldReport,
    HealthSignal,
    KernelSignature,
    SeedState,
    SeedStatus,
    Site,
    SiteKind,
)
from esper.tamiyo import AtRandom, EpochFigures, Observation

SIGNATURE = KernelSignature(kind=SiteKind.FEATURES, features=6)
FALLING = [2.0, 1.5, 1.0, 0.7, 0.4]
STALLED = [2.0, 1.5, 1.4, 1.39, 1.38]


WIDER = SIGNATURE.model_copy(update={"inputs": 4})
"""What new units of a layer are built for."""


def site(layer_id: int, *, depth: int = 1, chunks: int = 1, widens: str | None = None) -> Site:
    return Site(
        layer_id=layer_id,
        name=f"layer{layer_id}",
        module_type="Linear",
        signature=SIGNATURE if widens is None else WIDER,
        widens=widens,
        depth=depth,
        num_seeds=chunks,
    )


def seed(
    layer_id: int,
    state: SeedState = SeedState.DORMANT,
    *,
    index: int = 0,
    kernel_id: str | None = None,
) -> SeedStatus:
    return SeedStatus(
        seed_id=(layer_id, index),
        site=f"layer{layer_id}",
        state=state,
        alpha=0.0,
        kernel_id=kernel_id,
    )


def kernel(
    number: int, *, num_parameters: int = 100, signature: KernelSignature = SIGNATURE
) -> CompiledKernelArtifact:
    return CompiledKernelArtifact(
        kernel_id=f"{number:064x}",
        blueprint_id="b" * 64,
        blueprint_name=f"block{number}",
        signature=signature,
        size_bytes=1,
        num_parameters=num_parameters,
    )


def observation(
    losses: list[float],
    *,
    seeds: list[SeedStatus] | None = None,
    kernels: list[CompiledKernelArtifact] | None = None,
    outcomes: list[FieldReport] | None = None,
    epochs_left: int | None = 50,
    health: list[HealthSignal] | None = None,
    sites: list[Site] | None = None,
    seconds: float = 0.0,
) -> Observation:
    return Observation(
        epoch=len(losses) - 1,
        epochs_left=epochs_left,
        history=[EpochFigures(epoch=i, val_loss=loss) for i, loss in enumerate(losses)],
        sites=sites or [site(0), site(1)],
        seeds=seeds if seeds is not None else [seed(0), seed(1)],
        health=health or [],
        kernels=kernels if kernels is not None else [kernel(1), kernel(2, num_parameters=1000)],
        outcomes=outcomes or [],
        num_parameters=1000,
        seconds=seconds,
    )


def culled(layer_id: int, number: int) -> FieldReport:
    return FieldReport(
        run_id="run",
        seed_id=(layer_id, 0),
        site=f"layer{layer_id}",
        kernel_id=f"{number:064x}",
        blueprint_id="b" * 64,
        blueprint_name=f"block{number}",
        outcome=SeedState.CULLED,
        reason="no help",
        epoch_started=1,
        epoch_ended=4,
        parameters_added=0,
    )


def healthy(layer_id: int, *, gap: float | None, gain: float | None = None) -> HealthSignal:
    return HealthSignal(
        layer_id=layer_id,
        seed_id=0,
        chunk_id=0,
        epoch=0,
        activation_variance=1.0,
        dead_neuron_ratio=0.0,
        avg_correlation=0.0,
        expressivity_gap=gap,
        expressivity_gain=gain,
        num_rows=100,
    )


ALWAYS = AtRandom(chance=1.0)

READS = 5
PAIR = KernelSignature(kind=SiteKind.FEATURES, features=6, inputs=READS)


def block(layer_id: int, name: str, *, width: int = 6) -> Site:
    signature = SIGNATURE.model_copy(update={"features": width})
    return Site(layer_id=layer_id, name=name, module_type="Linear", signature=signature)


def units(layer_id: int, wide: str, into: str, *, spans: int = 1) -> Site:
    return Site(
        layer_id=layer_id,
        name=into,
        module_type="Linear",
        signature=PAIR,
        widens=wide,
        spans=spans,
    )


def seen(
    sites: list[Site],
    kernels: list[CompiledKernelArtifact],
    *health: HealthSignal,
    steps: int = 0,
) -> Observation:
    made = observation(
        STALLED,
        sites=sites,
        seeds=[seed(site.layer_id) for site in sites],
        kernels=kernels,
        health=list(health),
    )
    return dataclasses.replace(made, steps=steps)
