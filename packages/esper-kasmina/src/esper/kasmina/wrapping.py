"""Puts seeds into a host: plan first, then carry the plan out.

What users call to begin; `loading.load` carries out the plan of a saved model instead.
"""

from collections.abc import Sequence

from torch import nn

from esper.contracts import BlueprintError, BlueprintIR, HostError, Site
from esper.kasmina.bed import Bed
from esper.kasmina.graft import claim
from esper.kasmina.kernels import template_of
from esper.kasmina.plan import Plan, device_of, plan
from esper.kasmina.probe import Example
from esper.kasmina.sampling import Sampling
from esper.kasmina.seed import Seed
from esper.kasmina.stages import StageLengths
from esper.kasmina.targets import Target, named_modules

SAMPLE_EVERY_STEPS = 32
"""Keeps what sampling costs below 1 % of the training steps of a small model."""


def wrap(
    model: nn.Module,
    *,
    targets: Sequence[Target] | None = None,
    example: Example | None = None,
    chunks: int = 1,
    depth: int = 1,
    causal: bool | None = None,
    widen: bool = False,
    blueprints: Sequence[BlueprintIR] = (),
    stages: StageLengths | None = None,
    sample_every_steps: int | None = SAMPLE_EVERY_STEPS,
    sample_compiled: bool = False,
) -> Bed:
    """Put dormant seeds at every site of `model` that `plan` finds with the same arguments.

    The host stays the same object and computes the same, bit for bit.

    Args:
        model: the host.
        targets: names, globs, types or predicates of the layers to use; see `plan`.
        example: inputs of one training batch, for what only a trial run can tell; see `plan`.
        chunks: into how many equal parts to split each site's features, one seed each.
        depth: how many blocks can grow in a row at each site, the later ones nearer to the input.
        causal: whether tokens may only look back at sequence sites; see `plan`.
        widen: whether layers can also become wider; see `plan`.
        blueprints: designs of your own to grow with, beside the built-in ones.
        stages: how long the stages of a seed's life last.
        sample_every_steps: health is sampled in one of so many training steps; None: never. With
            `widen` the first 64 samples come eight times as often.
        sample_compiled: under `torch.compile` no Python runs between the kernels and health cannot be
            sampled; with this, sampled steps run uncompiled.

    Raises:
        HostError: listing every problem; then nothing was changed.
        BlueprintError: if a design of your own fits no site, or cannot be built for one that it fits.

    """
    found = plan(
        model, targets, example=example, chunks=chunks, depth=depth, causal=causal, widen=widen
    )
    return carry_out(
        model,
        found,
        blueprints=blueprints,
        stages=stages,
        sample_every_steps=sample_every_steps,
        sample_compiled=sample_compiled,
    )


def carry_out(
    model: nn.Module,
    found: Plan,
    *,
    blueprints: Sequence[BlueprintIR] = (),
    stages: StageLengths | None = None,
    sample_every_steps: int | None = SAMPLE_EVERY_STEPS,
    sample_compiled: bool = False,
) -> Bed:
    """Put seeds where a plan for `model` says; see `wrap`.

    Raises:
        HostError: if the plan has problems; then nothing was changed.

    """
    if sample_every_steps is not None and sample_every_steps < 1:
        raise HostError(f"sample_every_steps={sample_every_steps}; expected at least 1, or None")
    found.check()
    check_designs(blueprints, found.sites)
    lengths = stages or StageLengths()
    modules = named_modules(model)
    seeds = [
        Seed(
            site,
            index,
            layer,
            stages=lengths,
            device=device_of(layer, model),
            beside=None if site.widens is None else modules[site.widens],
        )
        for site in found.sites
        for layer in (modules[site.name],)
        for index in range(site.num_places)
    ]
    for seed in seeds:
        claim(seed.layer)
    sampling = Sampling(seeds, sample_every_steps, compiled_steps_run_eagerly=sample_compiled)
    return Bed(model, seeds, sampling, blueprints)


def check_designs(blueprints: Sequence[BlueprintIR], sites: Sequence[Site]) -> None:
    """Pass silently if each design can be built for every site whose kind takes it, and for one at least.

    Raises:
        BlueprintError: naming the design, and the site or the kinds that there are.

    """
    for ir in blueprints:
        fitting = [site for site in sites if ir.fits(site.signature)]
        if not fitting:
            alike = [site for site in sites if (site.widens is not None) == ir.widens]
            kinds = {kind for site in alike for kind in site.signature.kind.takes}
            what = "widens a layer at" if ir.widens else "is for"
            raise BlueprintError(
                f"blueprint {ir.name!r} {what} {ir.kind} sites; this host's sites take: "
                + (
                    ", ".join(sorted(kinds))
                    or "no such designs; wrap(…, widen=True) makes places for them"
                )
            )
        for site in fitting:
            try:
                template_of(ir, site.signature.model_copy(update={"kind": ir.kind}))
            except BlueprintError as error:
                raise BlueprintError(f"at the site {site.label!r}: {error}") from error
