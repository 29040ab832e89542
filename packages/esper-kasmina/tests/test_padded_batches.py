"""Torch's own encoders evaluate padded batches as nested tensors; blocks within them act there, too."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false

import pytest
import torch
from kasmina_factory import QUICK, grow, wake
from torch import Tensor, nn

from esper.contracts import SeedState, SiteKind
from esper.kasmina import Bed, plan, wrap

BIRTH = (SeedState.GERMINATED, SeedState.LOADING, SeedState.GRAFTING, SeedState.STABILIZATION)
PLACES = ["layers.0.linear1", "layers.0.linear2", "layers.0.self_attn", "layers.0", "layers.1"]


class Padded(nn.Module):
    """An encoder of sequences of several lengths: (B, T, 8) → (B, T, 8)."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor, is_padding: Tensor) -> Tensor:
        h: Tensor = self.encoder(x, src_key_padding_mask=is_padding)
        return h.masked_fill(is_padding.unsqueeze(-1), 0)


def batch() -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([5, 3, 0, 4])
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 5, 8, generator=generator), torch.arange(5) >= lengths[:, None]


def grown(place: str, *, wider: bool = False) -> Bed:
    torch.manual_seed(0)
    model = Padded()
    name = f"encoder.{place}"
    targets = [name, "encoder.layers.0.linear1"] if wider else [name]
    bed = wrap(model, targets=targets, example=batch(), widen=wider, stages=QUICK)
    bed.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    (site,) = [s for s in bed.sites if s.name == name and (s.widens is not None) is wider]
    looks_ahead = site.signature.kind is SiteKind.SEQUENCE
    blueprint = "wider" if wider else "self_attention" if looks_ahead else "causal_attention"
    grow(bed, BIRTH, site=site.layer_id, name=blueprint, change=wake)
    return bed


def evaluated(bed: Bed) -> Tensor:
    with torch.no_grad():
        return bed.model.eval()(*batch())


# Torch says that its nested tensors are a prototype.
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("place", "wider"), [*((place, False) for place in PLACES), ("layers.0.linear2", True)]
)
def test_a_block_acts_on_padded_batches_as_it_does_on_each_sequence_alone(
    place: str, wider: bool
) -> None:
    torch.manual_seed(0)
    bare = Padded().eval()
    bed = grown(place, wider=wider)
    fast = evaluated(bed)
    with torch.no_grad():
        assert not torch.allclose(fast, bare(*batch()), atol=1e-3)
        for number, (x, is_padding) in enumerate(zip(*batch(), strict=True)):
            if is_padding.all():
                continue
            alone = x[~is_padding].unsqueeze(0)
            h = bed.model.get_submodule("encoder")(alone)
            assert torch.allclose(fast[number][~is_padding], h[0], atol=1e-5)


def test_a_frozen_encoder_that_may_nest_while_blocks_learn_is_refused() -> None:
    model = Padded().requires_grad_(False)
    found = plan(model, ["encoder.layers.0.linear2"])
    assert "enable_nested_tensor=False" in found.problems[0]
    model.encoder.use_nested_tensor = False
    assert not plan(model, ["encoder.layers.0.linear2"]).problems


def test_nested_tensors_of_the_host_keep_their_layout() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    bed = wrap(model, targets=["0"], stages=QUICK)
    bed.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    grow(bed, BIRTH, name="normalised_mlp", change=wake)
    parts = [torch.randn(2, 6), torch.randn(4, 6)]
    ragged = torch.nested.nested_tensor(parts, layout=torch.jagged)
    assert model(ragged).layout is torch.jagged
