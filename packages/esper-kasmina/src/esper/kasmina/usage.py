"""How much work a host does with its parameters, so that one can tell what new ones would cost at a place.

A linear layer or a convolution uses each of its weights once for every row of its output: for every
sample, token or position of an image. A block at the first layer of a convolutional net, where images are
large, costs many times what as many parameters cost behind the last pooling.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from esper.kasmina.nested import tensors_in
from esper.kasmina.shapes import shape_of
from esper.kasmina.targets import named_modules

_TABLES = (nn.Embedding, nn.EmbeddingBag)
"""Of their parameters a row needs a few only, whatever their number."""


class Usage:
    """Counts, while a model runs, the rows of output that each of its parameters is used for."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = named_modules(model)
        self._rows: dict[str, int] = {}
        self._hooks = [
            module.register_forward_hook(self._counter(name))
            for name, module in self._modules.items()
        ]

    def close(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()

    def mean_rows(self) -> float:
        """Return the rows of an average parameter; 0 where nothing with parameters ran.

        A parameter of a module that was not called itself, as within torch's attention, counts with the
        module around it that was.
        """
        work = count = 0
        for name, module in self._modules.items():
            number = sum(p.numel() for p in module.parameters(recurse=False))
            rows = next((self._rows[each] for each in _around(name) if each in self._rows), 0)
            if rows and not isinstance(module, _TABLES):
                work += number * rows
                count += number
        return work / count if count else 0.0

    def _counter(self, name: str) -> Any:
        def count(module: nn.Module, _args: object, output: object) -> None:
            first = next(tensors_in(output), None)
            if first is not None and first.dim():
                self._rows[name] = self._rows.get(name, 0) + rows_of(module, first)

        return count


def rows_of(layer: nn.Module, output: Tensor) -> int:
    """Return the rows of a layer's output: its numbers divided by its features."""
    shape = shape_of(layer, output)
    width = output.shape[-1] if isinstance(shape, str) else shape[1]
    return output.numel() // max(1, width)


def _around(name: str) -> Iterator[str]:
    """Yield the names of a module and of all that it is within, innermost first."""
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield ""
