"""The nets that grow, and those that never do: small hosts for signals, images and characters.

Shapes: B batch, T tokens, D features, C classes.
"""

# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false

import torch
from torch import Tensor, nn
from torch.nn import functional

CONTEXT = 64
WIDTH = 64


def plain_mlp(width: int) -> nn.Module:
    """Return three hidden layers: (B, 40) → (B, 10)."""
    layers: list[nn.Module] = []
    before = 40
    for _ in range(3):
        layers += [nn.Linear(before, width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.Linear(width, 10))


def image_net(width: int) -> nn.Module:
    """Return two convolutions with pooling and a hidden layer: (B, 1, 8, 8) → (B, 10)."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * width, 10),
    )


class ResidualMlp(nn.Module):
    """A stem, pre-norm residual blocks, a head: (B, 40) → (B, 10)."""

    def __init__(self, num_blocks: int, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Linear(40, width)
        self.blocks = nn.Sequential(*(Residual(mlp(width, 2)) for _ in range(num_blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.norm(self.blocks(self.stem(x))))


class ConvNet(nn.Module):
    """Three convolutions and a linear head: (B, 40) → (B, 10)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Unflatten(1, (1, 40)),
            nn.Conv1d(1, width, 5, padding=2),
            nn.ReLU(),
            nn.Conv1d(width, width, 5, padding=2, stride=2),
            nn.ReLU(),
            nn.Conv1d(width, width, 5, padding=2, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(width * 10, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.layers(x)


class Residual(nn.Module):
    """`h + f(h)`."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, h: Tensor) -> Tensor:
        """Return features."""
        return h + self.inner(h)


def mlp(width: int, ratio: int) -> nn.Module:
    """Return a pre-norm MLP."""
    inside = ratio * width
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, inside), nn.GELU(), nn.Linear(inside, width)
    )


class Attention(nn.Module):
    """Pre-norm causal self-attention."""

    def __init__(self, width: int, num_heads: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self._num_heads = num_heads

    def forward(self, h: Tensor) -> Tensor:
        """Return features (B, T, D)."""
        b, t, d = h.shape
        parts = self.qkv(self.norm(h)).view(b, t, 3, self._num_heads, d // self._num_heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(b, t, d))


class Embedding(nn.Module):
    """Tokens and their places: (B, T) → (B, T, D)."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.token = nn.Embedding(num_tokens, WIDTH)
        self.place = nn.Embedding(CONTEXT, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return features."""
        return self.token(tokens) + self.place(torch.arange(tokens.shape[1]))


class Transformer(nn.Module):
    """A pre-norm causal transformer: (B, T) → (B, T, number of tokens)."""

    def __init__(self, num_tokens: int, num_blocks: int) -> None:
        super().__init__()
        self.embed = Embedding(num_tokens)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(Residual(Attention(WIDTH)), Residual(mlp(WIDTH, 4)))
                for _ in range(num_blocks)
            )
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, num_tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.norm(self.blocks(self.embed(tokens))))
