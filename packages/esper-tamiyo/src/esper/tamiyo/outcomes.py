"""What is filed of an attempt to grow when it ends: the report that the library keeps."""

from collections.abc import Sequence
from uuid import UUID, uuid5

from esper.contracts import (
    CompiledKernelArtifact,
    FieldReport,
    SeedEvent,
    SeedState,
    SeedStatus,
    Site,
)
from esper.tamiyo.policies import EpochFigures
from esper.tamiyo.verdict import Evidence

UNKNOWN = "0" * 64
"""Stands for the blueprint of a block that came with a loaded model and that this library lacks."""

_REPORTS = UUID("9d0f6cf2-8d51-4b0e-9a8e-3a4b6c7f5b11")


def kernel_of(
    seed: SeedStatus, sites: Sequence[Site], kernels: Sequence[CompiledKernelArtifact]
) -> CompiledKernelArtifact | None:
    """Return the seed's kernel; for one that came with a loaded model, one of its design and size."""
    site = next(site for site in sites if site.layer_id == seed.seed_id[0])
    alike = [
        kernel
        for kernel in kernels
        if kernel.blueprint_name == seed.blueprint_name and kernel.signature.fits(site.signature)
    ]
    exact = [kernel for kernel in kernels if kernel.kernel_id == seed.kernel_id]
    return next(iter([*exact, *alike]), None)


def field_report(
    run_id: str,
    number: int,
    event: SeedEvent,
    *,
    seed: SeedStatus,
    kernel: CompiledKernelArtifact | None,
    events: Sequence[SeedEvent],
    before: EpochFigures | None,
    evidence: Evidence | None,
) -> FieldReport:
    """Return the report on an attempt that ended with `event`.

    Args:
        run_id: of the run.
        number: how many were filed before it.
        event: the transition into its final state.
        seed: the seed as it stood before that.
        kernel: the seed's kernel, if the library has it.
        events: all of the run.
        before: the figures of the last epoch before the graft, if it came so far.
        evidence: what its verdict rested on, if it was judged.

    """
    stays = event.to_state is SeedState.FOSSILIZED
    started = [
        e.epoch for e in events if e.seed_id == event.seed_id and e.to_state is SeedState.GERMINATED
    ]
    with_block = evidence.with_block if evidence is not None else None
    without = evidence.without_block if evidence is not None else None
    measured = with_block.loss if with_block is not None else None
    return FieldReport(
        # The same in a run that was killed and goes on: of two alike the library keeps one. Another where
        # the run went back and on in another way.
        report_id=str(uuid5(_REPORTS, f"{run_id} {number} {event.epoch} {measured}")),
        run_id=run_id,
        seed_id=event.seed_id,
        site=event.site,
        kernel_id=seed.kernel_id or UNKNOWN,
        blueprint_id=kernel.blueprint_id if kernel is not None else UNKNOWN,
        blueprint_name=seed.blueprint_name or "unknown",
        outcome=event.to_state,
        reason=event.reason,
        epoch_started=max(started, default=0),  # 0: it came with a loaded model
        epoch_ended=event.epoch,
        parameters_added=kernel.num_parameters if kernel is not None and stays else 0,
        loss_before=before.val_loss if before is not None else None,
        loss_with=measured,
        loss_without=without.loss if without is not None else None,
        accuracy_with=with_block.accuracy if with_block is not None else None,
        accuracy_without=without.accuracy if without is not None else None,
    )
