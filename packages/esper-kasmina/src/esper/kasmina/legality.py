"""Whether a command may be carried out: the lifecycle table, and what the bed knows besides.

The bed asks before it changes anything; a refusal says the state, the command and what would be legal.
"""

from collections.abc import Collection

from esper.contracts import IllegalTransitionError, SeedState, check_transition
from esper.kasmina.seed import BEFORE_VERDICT, Seed

UNDONE = frozenset({SeedState.CULLED, SeedState.CANCELLED, SeedState.ROLLED_BACK})
"""Where a seed goes when what it did is taken back."""

NEEDS_OPTIMIZER = frozenset({SeedState.TRAINING, SeedState.GRAFTING})


class Legality:
    """Checks commands against the seeds of one bed as they stand."""

    def __init__(self, seeds: Collection[Seed], *, has_optimizer: bool, can_undo: bool) -> None:
        self._seeds = seeds
        self._has_optimizer = has_optimizer
        self._can_undo = can_undo

    def check(self, seed: Seed, target: SeedState) -> None:
        """Pass silently if `seed` may go to `target` now.

        Raises:
            IllegalTransitionError: if it may not, and why.

        """
        name = f"seed {seed.seed_id} at {seed.site.name!r}"
        try:
            check_transition(seed.state, target)
        except IllegalTransitionError as error:
            raise IllegalTransitionError(f"{name}: {error}") from None
        if target in NEEDS_OPTIMIZER and not self._has_optimizer:
            raise IllegalTransitionError(
                f"{name} needs an optimizer for {target}; attach() it first"
            )
        if target is SeedState.GRAFTING:
            self._check_graft(name, seed)
        if target in UNDONE and seed.state in BEFORE_VERDICT and not self._can_undo:
            raise IllegalTransitionError(
                f"{name} was loaded from a folder, which does not keep what the host was before the "
                f"graft, so it cannot go to {target}; let it become FOSSILIZED"
            )

    def _check_graft(self, name: str, seed: Seed) -> None:
        if seed.failure is not None:
            raise IllegalTransitionError(f"{name} failed ({seed.failure}); cull it")
        for other in self._seeds:
            if other.state in BEFORE_VERDICT:
                raise IllegalTransitionError(
                    f"{name} cannot be grafted while seed {other.seed_id} at {other.site.name!r} is "
                    f"in {other.state}: an undo of one would undo the other; wait for its verdict"
                )
