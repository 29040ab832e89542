"""Seeds in models that nobody here wrote: all that a seed can live through, in each of them.

Needs the dependency group `hosts`, which no other test needs: uv run --group hosts pytest tests/hosts
"""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from kasmina_factory import QUICK, TO_FINE_TUNING, TO_FOSSILIZED, TO_TRAINING, S, grow, order, wake
from kasmina_hosts import digest
from torch import Tensor, nn
from zoo import HOSTS, Host

from esper.kasmina import FIRST_OF_TUPLE, Bed, load, plan, register_adapter, wrap
from esper.kasmina.targets import match, named_modules

for package in ("timm", "torchvision", "transformers"):
    pytest.importorskip(package, reason=f"{package} is not installed: uv run --group hosts …")

WAYS = ("layers", "blocks")
"""By default, or with whole blocks of the package's own as sites."""

every_host = pytest.mark.parametrize("name", list(HOSTS))
every_way = pytest.mark.parametrize("way", WAYS)


def prepare(name: str) -> tuple[Host, nn.Module]:
    """Build a host and say how its blocks' output is read."""
    host = HOSTS[name]
    model = host.make()
    if host.returns_tuples:
        for names in match(named_modules(model), host.blocks).values():
            for block in names:
                register_adapter(type(model.get_submodule(block)), FIRST_OF_TUPLE)
    return host, model


@dataclass(kw_only=True)
class Life:
    """A host with seeds and what trains it."""

    host: Host
    bed: Bed
    optimizer: torch.optim.Optimizer
    site: int
    """Where the tests grow: in the middle, where half of the host is before it and half behind."""
    clock: int = 0

    @property
    def model(self) -> nn.Module:
        return self.bed.model

    def live(self, steps: int) -> list[float]:
        losses: list[float] = []
        self.model.train()
        for step in range(self.clock, self.clock + steps):
            self.optimizer.zero_grad()
            loss = self.host.loss(self.model, step)
            loss.backward()
            self.optimizer.step()
            losses.append(float(loss.detach()))
        self.clock += steps
        return losses

    def grow(self, path: Iterable[S], *, site: int, **options: Any) -> None:
        grow(self.bed, path, site=site, change=wake, between=lambda _: self.live(2), **options)

    def seen(self) -> str:
        """Return a hash of everything that an onlooker can compare, random streams included."""
        return digest(self.model, self.optimizer, [])

    def scores(self) -> Tensor:
        return scores(self.host, self.model)


def begin(name: str, way: str) -> Life:
    host, model = prepare(name)
    targets = None if way == "layers" else host.blocks
    bed = wrap(model, targets=targets, example=host.batch(0), stages=QUICK, sample_every_steps=3)
    optimizer = zoo.optimizer_of(model)
    bed.attach(optimizer)
    return Life(host=host, bed=bed, optimizer=optimizer, site=len(bed.sites) // 2)


def scores(host: Host, model: nn.Module) -> Tensor:
    """Return what the model answers to a batch that it was not trained on."""
    model.eval()
    with torch.no_grad():
        return zoo.logits(model(**host.batch(99)))


@every_host
def test_every_layer_that_is_called_and_every_block_carries_a_seed_by_default(name: str) -> None:
    host, model = prepare(name)
    found = plan(model, example=host.batch(0))
    assert found.problems == ()
    names = [site.name for site in found.sites]
    blocks = [name for name in names if any(each.startswith(f"{name}.") for each in names)]
    assert (len(names) - len(blocks), len(blocks)) == (host.num_layers, host.num_blocks)
    assert all("never called" in line or "output head" in line for line in found.refused)


@every_host
def test_every_block_of_the_packages_own_can_be_a_site(name: str) -> None:
    host, model = prepare(name)
    found = plan(model, host.blocks, example=host.batch(0))
    assert (found.problems, found.refused) == ((), ())
    assert not any(site.module_type in vars(nn) for site in found.sites)


@every_host
@every_way
def test_dormant_seeds_change_nothing_that_the_host_computes_or_is_called(
    name: str, way: str
) -> None:
    host, bare = prepare(name)
    checkpoint = bare.state_dict()
    life = begin(name, way)
    assert torch.equal(life.scores(), scores(host, bare))
    assert list(life.model.state_dict()) == list(checkpoint)
    life.model.load_state_dict(host.make(5).state_dict(), strict=True)
    assert torch.equal(life.scores(), scores(host, host.make(5)))


@every_host
@every_way
def test_the_host_does_not_notice_a_seed_in_training(
    name: str, way: str, lives_without_esper: dict[str, str]
) -> None:
    life = begin(name, way)

    def germinate(step: int) -> None:
        if step == 1:
            grow(life.bed, TO_TRAINING, site=life.site)

    losses = zoo.life(life.host, life.model, life.optimizer, before=germinate)
    assert digest(life.model, life.optimizer, losses) == lives_without_esper[name]
    assert life.bed.seed((life.site, 0)).is_ready  # it did learn


@every_host
def test_every_site_tells_its_health(name: str) -> None:
    life = begin(name, "layers")
    life.live(20)
    signals = life.bed.end_epoch(0)
    assert all(signal.num_rows > 0 for signal in signals)
    assert all(signal.gradient_norm is not None for signal in signals)
    assert any(signal.expressivity_gap is not None for signal in signals)


@every_host
@every_way
def test_a_block_becomes_part_of_the_model_which_is_saved_and_comes_back(
    name: str, way: str, tmp_path: Path
) -> None:
    life = begin(name, way)
    before = life.scores()
    life.grow(TO_FOSSILIZED, site=life.site)
    grown = life.scores()
    assert grown.isfinite().all()
    assert not torch.equal(grown, before)

    life.bed.save(tmp_path)
    fresh = life.host.make(5)
    load(fresh, tmp_path)
    assert torch.equal(scores(life.host, fresh), grown)

    checkpoint = life.host.make(6).state_dict()
    life.model.load_state_dict(checkpoint, strict=True)
    assert list(checkpoint) == [key for key in life.model.state_dict() if "esper_seed" not in key]


@every_host
@every_way
def test_a_culled_block_beside_one_that_was_kept_leaves_no_trace(name: str, way: str) -> None:
    life = begin(name, way)
    life.grow(TO_FOSSILIZED, site=life.site)
    life.grow(TO_TRAINING, site=0)
    before = life.seen()
    for state in TO_FINE_TUNING[len(TO_TRAINING) :]:
        order(life.bed, state, seed_id=(0, 0))
        life.live(2)
    assert life.seen() != before
    order(life.bed, S.CULLED, seed_id=(0, 0))
    assert life.seen() == before


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize(
    ("blueprint", "mixes_tokens"), [("gated_mlp", False), ("causal_attention", True)]
)
def test_a_cache_of_earlier_tokens_suits_blocks_that_do_not_mix_tokens(
    name: str, blueprint: str, mixes_tokens: bool
) -> None:
    """A block sees the tokens of one call; with a cache that is one token at a time."""
    life = begin(name, "layers")
    life.grow(TO_FOSSILIZED, site=life.site, name=blueprint)
    life.model.eval()
    model: Any = life.model
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    options |= {"eos_token_id": None, "return_dict_in_generate": True, "output_scores": True}
    cached, fresh = (
        torch.stack(
            model.generate(**life.host.batch(99), use_cache=use_cache, **options).scores[:2]
        )
        for use_cache in (True, False)
    )
    assert torch.allclose(cached, fresh, atol=1e-6) == (not mixes_tokens)
