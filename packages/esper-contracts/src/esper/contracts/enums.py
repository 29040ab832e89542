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
    """What flows through a site, which decides the blueprints that fit it.

    Sequence sites also take blueprints for `FEATURES`, and `SEQUENCE` ones those for
    `CAUSAL_SEQUENCE`; see `takes`.
    """

    FEATURES = "features"
    """`(B, …, D)`: the last axis holds features, as after `nn.Linear`; rows are independent."""

    CAUSAL_SEQUENCE = "causal_sequence"
    """`(B, T, D)`: tokens that may only look back, as in a language model."""

    SEQUENCE = "sequence"
    """`(B, T, D)`: tokens that may look at each other in both directions."""

    CHANNELS_1D = "channels_1d"
    """`(B, D, L)`: the second axis holds channels, as after `nn.Conv1d`."""

    CHANNELS_2D = "channels_2d"
    """`(B, D, H, W)`: the second axis holds channels, as after `nn.Conv2d`."""

    CHANNELS_3D = "channels_3d"
    """`(B, D, L, H, W)`: the second axis holds channels, as after `nn.Conv3d`."""

    @property
    def takes(self) -> "frozenset[SiteKind]":
        """The kinds of blueprints that fit a site of this kind."""
        return _TAKES.get(self, frozenset({self}))

    @property
    def num_dims(self) -> int:
        """Dimensions of a batch of such features; 2 for `FEATURES`, which may have more."""
        return _NUM_DIMS[self]

    @property
    def is_channels(self) -> bool:
        """Whether `D` is the second axis; otherwise it is the last."""
        return self in (SiteKind.CHANNELS_1D, SiteKind.CHANNELS_2D, SiteKind.CHANNELS_3D)


_TAKES = {
    SiteKind.CAUSAL_SEQUENCE: frozenset({SiteKind.FEATURES, SiteKind.CAUSAL_SEQUENCE}),
    SiteKind.SEQUENCE: frozenset({SiteKind.FEATURES, SiteKind.CAUSAL_SEQUENCE, SiteKind.SEQUENCE}),
}
_NUM_DIMS = {
    SiteKind.FEATURES: 2,
    SiteKind.CAUSAL_SEQUENCE: 3,
    SiteKind.SEQUENCE: 3,
    SiteKind.CHANNELS_1D: 3,
    SiteKind.CHANNELS_2D: 4,
    SiteKind.CHANNELS_3D: 5,
}


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
