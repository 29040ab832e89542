"""Small hosts of many kinds, of which none was chosen by how well it grows.

Shapes: B batch, T patches, D features, C channels. Images are (B, 1, 8, 8), signals (B, 40); all answer
(B, 10) but where it is said.
"""

# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false

import torch
from nets import Residual, mlp
from torch import Tensor, nn
from torch.nn import functional


def depthwise() -> nn.Module:
    """Return depthwise and pointwise convolutions with BatchNorm, averaged over positions."""
    layers: list[nn.Module] = [_convolution(1, 8, 3)]
    for before, after, stride in ((8, 16, 2), (16, 16, 1), (16, 32, 2)):
        layers += [
            _convolution(before, before, 3, stride=stride, groups=before),
            _convolution(before, after, 1),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def _convolution(
    before: int, after: int, size: int, *, stride: int = 1, groups: int = 1
) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(before, after, size, stride=stride, padding=size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )


class ResNet(nn.Module):
    """A stem and two residual blocks with BatchNorm, the second with stride 2 and a shortcut of its own."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.stem = _convolution(1, width, 3)
        self.blocks = nn.Sequential(_BasicBlock(width, width, 1), _BasicBlock(width, 2 * width, 2))
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.blocks(self.stem(x)).mean(dim=(2, 3)))


class _BasicBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(before, after, 3, stride=stride)
        self.second = nn.Sequential(
            nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)
        )
        self.shortcut = (
            nn.Identity()
            if (before, stride) == (after, 1)
            else nn.Conv2d(before, after, 1, stride=stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.second(self.first(x)) + self.shortcut(x))


class DenseNet(nn.Module):
    """Three convolutions, each of which reads all that there was before it."""

    def __init__(self, growth: int = 4) -> None:
        super().__init__()
        widths = [1 + number * growth for number in range(4)]
        self.layers = nn.ModuleList(nn.Conv2d(w, growth, 3, padding=1) for w in widths[:3])
        self.head = nn.Linear(4 * widths[3], 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        for layer in self.layers:
            x = torch.cat([x, functional.relu(layer(x))], dim=1)
        return self.head(functional.adaptive_avg_pool2d(x, 2).flatten(1))


def with_hidden_layer() -> nn.Module:
    """Return convolutions with pooling, a hidden layer of 64 and dropout."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 64),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(64, 10),
    )


class _Patches(nn.Module):
    """Sixteen patches of an image: (B, 1, 8, 8) → (B, T, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, stride=2)
        self.place = nn.Parameter(torch.empty(1, 16, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw what marks the places."""
        nn.init.normal_(self.place, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.patch(x).flatten(2).transpose(1, 2) + self.place


class VisionTransformer(nn.Module):
    """One block of torch's own encoder over patches, averaged."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = _Patches(width)
        self.block = nn.TransformerEncoderLayer(
            width, 2, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.norm(self.block(self.embed(x))).mean(dim=1))


class Mixer(nn.Module):
    """One MLP over patches and one over features (Tolstikhin et al. 2021)."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.embed = _Patches(width)
        self.over_patches = nn.Sequential(_Transposed(), Residual(mlp(16, 2)), _Transposed())
        self.over_features = Residual(mlp(width, 2))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        h = self.over_features(self.over_patches(self.embed(x)))
        return self.head(self.norm(h).mean(dim=1))


class _Transposed(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h.transpose(1, 2)


class Recurrent(nn.Module):
    """A GRU over the rows of an image, and a hidden layer behind its last state."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.rows = nn.GRU(8, width, batch_first=True)
        self.hidden = nn.Linear(width, width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        states, _ = self.rows(x.squeeze(1))
        return self.head(functional.relu(self.hidden(states[:, -1])))


def normalised_mlp() -> nn.Module:
    """Return two hidden layers of twelve with LayerNorm, GELU and dropout, for images."""
    layers: list[nn.Module] = [nn.Flatten()]
    for before in (64, 12):
        layers += [nn.Linear(before, 12), nn.LayerNorm(12), nn.GELU(), nn.Dropout(0.1)]
    return nn.Sequential(*layers, nn.Linear(12, 10))


class Gated(nn.Module):
    """A residual gated linear unit (Dauphin et al. 2017), for images."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Linear(64, width)
        self.inner = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GLU(), nn.Linear(width, width)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        h = self.stem(x.flatten(1))
        return self.head(h + self.inner(h))


def signals_with_norms() -> nn.Module:
    """Return convolutions with BatchNorm and pooling, and a hidden layer, for signals."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 40))]
    for before in (1, 8):
        convolution = nn.Conv1d(before, 8, 5, padding=2, bias=False)
        layers += [convolution, nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(80, 24), nn.ReLU(), nn.Linear(24, 10))


def residual_signals(width: int = 8) -> nn.Module:
    """Return pre-norm residual convolutions behind two of stride 2, for signals."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 40)),
        nn.Conv1d(1, width, 5, padding=2, stride=2),
        Residual(_convolutions(width)),
        nn.Conv1d(width, 2 * width, 5, padding=2, stride=2),
        Residual(_convolutions(2 * width)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20 * width, 10),
    )


def _convolutions(width: int) -> nn.Module:
    return nn.Sequential(
        nn.GroupNorm(1, width),
        nn.Conv1d(width, width, 5, padding=2),
        nn.ReLU(),
        nn.Conv1d(width, width, 5, padding=2),
    )


def narrow_mlp(num_inputs: int, width: int, num_outputs: int) -> nn.Module:
    """Return two narrow hidden layers: (B, inputs) → (B, outputs)."""
    return nn.Sequential(
        nn.Linear(num_inputs, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, num_outputs),
    )
