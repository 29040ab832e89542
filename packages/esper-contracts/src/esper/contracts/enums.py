"""Every enumeration of the platform; one vocabulary, no near-twins."""

from enum import StrEnum


class SeedState(StrEnum):
    """The states of a seed; what each means and what may follow is in `lifecycle.LIFECYCLE`."""

    DORMANT = "DORMANT"
    GERMINATED = "GERMINATED"
    LOADING = "LOADING"
    TRAINING = "TRAINING"
    GRAFTING = "GRAFTING"
    STABILIZATION = "STABILIZATION"
    EVALUATING = "EVALUATING"
    FINE_TUNING = "FINE_TUNING"
    FOSSILIZED = "FOSSILIZED"
    CULLED = "CULLED"
    CANCELLED = "CANCELLED"
    ROLLED_BACK = "ROLLED_BACK"


class SiteKind(StrEnum):
    """What flows through a site, which decides the blueprints that fit it."""

    FEATURES = "features"
    """`(B, …, D)`: the last axis holds features, as after `nn.Linear`."""

    CHANNELS_2D = "channels_2d"
    """`(B, D, H, W)`: the second axis holds channels, as after `nn.Conv2d`."""


class BlueprintStatus(StrEnum):
    """Where a blueprint stands in the library."""

    SUBMITTED = "SUBMITTED"
    COMPILED = "COMPILED"
    ARCHIVED = "ARCHIVED"


class KernelStatus(StrEnum):
    """Where a kernel stands; only the crucible (Urabrask) may say VALIDATED."""

    COMPILED = "COMPILED"
    VALIDATED = "VALIDATED"
    REJECTED = "REJECTED"
    ARCHIVED = "ARCHIVED"


class Action(StrEnum):
    """What a controller decided at a decision point."""

    WAIT = "wait"
    GERMINATE = "germinate"
    ADVANCE = "advance"
    CULL = "cull"
