"""Grown hosts for the tests of exports: some from `kasmina_hosts`, a causal transformer, and more."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from kasmina_beds import bed_of
from kasmina_factory import QUICK, ROW_NAMES, S, grow, wake
from kasmina_hosts import Residual
from torch import Tensor, nn

from esper.contracts import SiteKind
from esper.kasmina import Bed, builtin_blueprints, wrap

AT_ONCE = (S.GERMINATED, S.LOADING, S.GRAFTING, S.STABILIZATION, S.EVALUATING, S.FOSSILIZED)
"""The shortest way to a fossil."""


class CausalLM(nn.Module):
    """A small language model; `x` are token ids `(B, T)`, T at most 12."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.places = nn.Embedding(12, 8)
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
        self.block = Residual(8)
        self.head = nn.Linear(8, 11)

    def forward(self, x: Tensor) -> Tensor:
        num_tokens = x.shape[1]
        h = self.embed(x) + self.places.weight[:num_tokens]
        later = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=x.device).triu(1)
        mixed, _ = self.mix(h, h, h, attn_mask=later, need_weights=False)
        return self.head(self.block(h + mixed))


@dataclass(frozen=True, kw_only=True)
class Grown:
    """A bed whose host has grown, with inputs of several sizes."""

    bed: Bed
    inputs: Sequence[Tensor]
    """The example first."""


def rows(x: Tensor, *counts: int, axis: int = 0) -> list[Tensor]:
    """Return `x`, and other inputs like it with so many rows."""
    generator = torch.Generator().manual_seed(5)
    found = [x]
    for count in counts:
        shape = [*x.shape[:axis], count, *x.shape[axis + 1 :]]
        found.append(
            torch.randn(shape, generator=generator).to(x)
            if x.is_floating_point()
            else torch.randint(0, 11, shape, generator=generator)
        )
    return found


def grow_all(bed: Bed, names: Sequence[str | None] = (None,)) -> None:
    """Grow a fossil at each site, of these designs in turn."""
    for number, site in enumerate(bed.sites):
        for chunk in range(site.num_seeds):
            name = names[number % len(names)]
            grow(bed, AT_ONCE, site=number, chunk=chunk, name=name, change=wake)


def grown(name: str) -> Grown:
    """Return one of the hosts of `kasmina_hosts` with a fossil at every site."""
    host, bed, _ = bed_of(name)
    grow_all(bed)
    axis = 1 if "tokens_first" in name else 0
    return Grown(bed=bed, inputs=rows(host.batch(0)[0], 1, 3, 11, axis=axis))


def grown_lm() -> Grown:
    """Return a causal transformer with causal blocks in it."""
    torch.manual_seed(0)
    model = CausalLM()
    ids = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(1))
    bed = wrap(model, targets=["mix", "block", "block.up"], example=ids, stages=QUICK)
    assert [site.signature.kind for site in bed.sites][:2] == [SiteKind.CAUSAL_SEQUENCE] * 2
    bed.attach(torch.optim.Adam(model.parameters(), lr=1e-2))
    grow_all(bed, ["causal_attention", "causal_token_mixing", "gated_mlp"])
    inputs = [*rows(ids, 1, 9), *rows(ids, 2, 12, axis=1)[1:]]
    return Grown(bed=bed, inputs=inputs)


def grown_mlp(dtype: torch.dtype) -> Grown:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3)).to(dtype)
    bed = wrap(model, stages=QUICK)
    bed.attach(torch.optim.SGD(model.parameters(), lr=1e-2))
    grow_all(bed, ["residual_mlp", "gated_mlp"])
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return Grown(bed=bed, inputs=rows(x, 1, 3))


_LAYERS: dict[SiteKind, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    SiteKind.FEATURES: (lambda: nn.Linear(6, 6), (5, 6)),
    SiteKind.SEQUENCE: (lambda: nn.GRU(6, 3, batch_first=True, bidirectional=True), (5, 4, 6)),
    SiteKind.CAUSAL_SEQUENCE: (lambda: nn.GRU(6, 6, batch_first=True), (5, 4, 6)),
    SiteKind.CHANNELS_1D: (lambda: nn.Conv1d(6, 6, 3, padding=1), (5, 6, 4)),
    SiteKind.CHANNELS_2D: (lambda: nn.Conv2d(6, 6, 3, padding=1), (5, 6, 4, 4)),
    SiteKind.CHANNELS_3D: (lambda: nn.Conv3d(6, 6, 3, padding=1), (5, 6, 4, 4, 2)),
}


class Chain(nn.Module):
    """Layers one after another; of a tuple the first element goes on."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            output = layer(x)
            x = output if isinstance(output, Tensor) else output[0]
        return x


def grown_with_every_blueprint(kind: SiteKind) -> Grown:
    """Return a host of one kind of site, with one site for each built-in design of that kind."""
    designs = [ir for ir in builtin_blueprints() if ir.kind is kind and not ir.widens]
    names = [ir.name for ir in designs if ir.name not in ROW_NAMES]
    assert names
    make, shape = _LAYERS[kind]
    torch.manual_seed(0)
    model = Chain([make() for _ in names])
    bed = wrap(model, targets=["layers.*"], causal=kind is SiteKind.CAUSAL_SEQUENCE, stages=QUICK)
    bed.attach(torch.optim.SGD(model.parameters(), lr=1e-2))
    grow_all(bed, names)
    assert [seed.blueprint_name for seed in bed.seeds()] == names
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return Grown(bed=bed, inputs=rows(x, 1, 3))
