"""Decides which training steps are looked at, and has the sites' hooks in place for just those.

The bed calls it after each step of the optimizer. Between samples a dormant site has no hook at all:
even an empty one costs about 3 % of a small layer's training step.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from esper.kasmina.graft import SiteHook
from esper.kasmina.seed import Seed
from esper.kasmina.source import Source

CLOSE_SAMPLES, CLOSER = 64, 8
"""Where layers can become wider, the first so many samples come so many times as often: what is narrow shows
early in training, and early is when growth pays."""


class Sampling:
    """Arms every site for one step: the second of each epoch, and every n-th from there on.

    The first step of all is left alone, so that a host that is compiled on its first call is compiled
    without hooks. It also keeps the one hook of each layer, made when it is first needed.
    """

    def __init__(
        self, seeds: Sequence[Seed], every_steps: int | None, *, compiled_steps_run_eagerly: bool
    ) -> None:
        # Seeds of one place in a row see the same; the first of them looks.
        self._seeds = [seed for seed in seeds if seed.span.slot == 0]
        self._every_steps = every_steps
        self._eagerly = compiled_steps_run_eagerly
        self._countdown = 0
        self._close_samples = CLOSE_SAMPLES if any(seed.beside for seed in seeds) else 0
        self._armed = False
        self._is_on = True
        self._hooks: dict[nn.Module, SiteHook] = {}
        self._complete = False

    def hook_of(self, layer: nn.Module) -> SiteHook:
        """Return the one hook of `layer`; it is in place only while it has something to do."""
        if layer not in self._hooks:
            self._hooks[layer] = _hook(layer, [s for s in self._seeds if s.layer is layer])
        return self._hooks[layer]

    def start(self) -> None:
        """Begin an epoch: sample soon, however short it is."""
        self._countdown = 1

    def skip_next(self) -> None:
        """Leave the next step alone: a host that changed is compiled in it, best without hooks."""
        self.stop()
        self._countdown = max(self._countdown, 2)

    def switch(self, *, on: bool) -> None:
        """Look at steps from now on, or no longer."""
        if on is self._is_on:
            return
        self._is_on = on
        if on:
            self.start()
        else:
            self.stop()

    def after_step(self) -> None:
        """Count one step of the optimizer."""
        if self._armed:
            self.stop()
        if self._every_steps is None or not self._is_on:
            return
        self._countdown -= 1
        if self._countdown <= 0:
            self._countdown = self._every_steps
            if self._close_samples:
                self._close_samples -= 1
                self._countdown = max(1, self._every_steps // CLOSER)
            self._arm()

    def stop(self) -> None:
        """Take the hooks away that nobody else needs. Idempotent."""
        if not self._armed:
            return
        self._armed = False
        for layer, hook in self._hooks.items():
            hook.sampling = False
            hook.settle(layer)
        if self._eagerly:
            torch.compiler.set_stance("default")  # pyright: ignore[reportUnknownMemberType]

    def state_dict(self) -> dict[str, Any]:
        """Return which steps will be looked at."""
        return {
            "countdown": self._countdown,
            "is_armed": self._armed,
            "is_on": self._is_on,
            "close_samples": self._close_samples,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.stop()
        self._is_on = state.get("is_on", True)
        self._countdown = state["countdown"]
        self._close_samples = state.get("close_samples", 0)
        if state["is_armed"]:
            self._arm()

    def _arm(self) -> None:
        self._armed = True
        for layer, hook in self._all_hooks():
            hook.sampling = True
            hook.settle(layer)
        if self._eagerly:
            torch.compiler.set_stance("force_eager")  # pyright: ignore[reportUnknownMemberType]

    def _all_hooks(self) -> Iterable[tuple[nn.Module, SiteHook]]:
        if not self._complete:
            by_layer: dict[nn.Module, list[Seed]] = {}
            for seed in self._seeds:
                by_layer.setdefault(seed.layer, []).append(seed)
            for layer, seeds in by_layer.items():
                self._hooks.setdefault(layer, _hook(layer, seeds))
            self._complete = True
        return self._hooks.items()


def _hook(layer: nn.Module, seeds: Sequence[Seed]) -> SiteHook:
    """Return a hook for all seeds of `layer`, with those that make earlier layers wider.

    A path past several layers is not looked at: each of its layers is.
    """
    sources = {
        seed.span.widens: Source(seed.beside, seed.span.kind, seed.span.num_read)
        for seed in seeds
        if seed.beside is not None and seed.span.widens is not None
    }
    return SiteHook(layer, [seed for seed in seeds if seed.site.spans == 1], sources)
