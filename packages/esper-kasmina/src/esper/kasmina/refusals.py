"""Why a host, or a layer of it, cannot carry seeds; the plan lists what is said here."""

import sys
from collections.abc import Mapping
from functools import cache
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import UninitializedParameter

from esper.contracts.words import type_of
from esper.kasmina.graft import carries_graft
from esper.kasmina.targets import TRANSFORMERS
from esper.kasmina.undo import RandomState

DEVICES = ("cpu", "cuda")
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
PARALLEL: tuple[type[nn.Module], ...] = (DataParallel, DistributedDataParallel)

CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def refuse_host(model: nn.Module) -> str | None:
    """Say why the host as a whole cannot be wrapped; None if it can."""
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        return f"it is {type_of(model)}; expected a torch.nn.Module"
    if isinstance(model, PARALLEL):
        return f"{type(model).__name__} has fixed its parameters; wrap the module inside it before"
    if isinstance(model, torch.jit.ScriptModule):
        return "a ScriptModule cannot grow; wrap the module that it was made from"
    if _is_compiled(model):
        return "it is compiled; wrap the module inside it (its _orig_mod) and compile that"
    return None


def outside_layers(layers: Mapping[str, nn.Module]) -> list[str]:
    """Return the names of parameters that are in no layer of torch's, as a bare `nn.Parameter` is."""
    return [
        f"{name}.{own}" if name else own
        for name, layer in layers.items()
        if isinstance(layer, CONTAINERS) or not _is_torchs_own(layer)
        for own, _ in layer.named_parameters(recurse=False)
    ]


def _is_torchs_own(layer: nn.Module) -> bool:
    return type(layer).__module__.startswith("torch.")


def _is_compiled(model: nn.Module) -> bool:
    # Who names `torch._dynamo` imports it, which takes seconds; who has compiled anything has it.
    eval_frame: Any = sys.modules.get("torch._dynamo.eval_frame")
    return eval_frame is not None and isinstance(model, eval_frame.OptimizedModule)


class Refusals:
    """Tells for each layer of one host why it cannot carry a seed."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = layers
        self._names: dict[int, list[str]] = {}
        for name, layer in layers.items():
            self._names.setdefault(id(layer), []).append(name)

    def of(self, name: str) -> str | None:
        """Say why the layer `name` cannot carry a seed; None if it can."""
        layer = self._layers[name]
        aliases = self._names[id(layer)]
        if not name:
            if len(self._layers) > 1 and (
                isinstance(layer, nn.Sequential) or not _is_torchs_own(layer)
            ):
                return "is all of it, and a seed needs a model around its layer: name a layer in it"
            return (
                "is a single layer, and a seed needs a model around it: one of your own that calls it, or, "
                "where it takes one input, nn.Sequential(model) with targets=['0']"
            )
        if len(aliases) > 1:
            return f"is shared under the names {', '.join(aliases)}: a seed there would act twice"
        if reason := self._bypass(name) or _shape_of_module(name, layer):
            return reason
        if carries_graft(layer):
            return "already carries a block that became part of the model"
        for parameter in layer.parameters():
            if isinstance(parameter, UninitializedParameter):
                return "is lazy and has no shape yet; run one batch through the model first"
            if parameter.device.type not in DEVICES:
                return f"is on device {parameter.device.type!r}; expected {' or '.join(DEVICES)}"
            floating = parameter.is_floating_point()
            if parameter.is_complex() or (floating and parameter.dtype not in FLOATS):
                names = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
                return f"has weights of {parameter.dtype}; expected one of {names}"
        return None

    def _bypass(self, name: str) -> str | None:
        """Say which enclosing module computes with this layer's weights without calling it."""
        parts = name.split(".")
        for depth in range(len(parts) + 1):
            outer = self._layers[".".join(parts[:depth])]
            if isinstance(outer, nn.MultiheadAttention) and depth < len(parts):
                return (
                    "is used by nn.MultiheadAttention without being called: a seed there would not "
                    "act; use the attention as a whole"
                )
            if (
                isinstance(outer, nn.TransformerEncoderLayer)
                and torch.backends.mha.get_fastpath_enabled()
                and not _fast_path_heeds_hooks()
            ):
                return (
                    "is bypassed by the fast path of nn.TransformerEncoderLayer in evaluation, which "
                    "this version of torch takes past hooks too; turn that off first with "
                    "torch.backends.mha.set_fastpath_enabled(False)"
                )
            if isinstance(outer, TRANSFORMERS) and depth < len(parts):
                attention = cast("nn.MultiheadAttention", outer.self_attn)
                is_attention = isinstance(self._layers[name], nn.MultiheadAttention)
                if not (is_attention or attention.batch_first):
                    return (
                        "is within a transformer layer with batch_first=False, and sees tokens before "
                        "samples: a seed there would mix samples; use the layer as a whole"
                    )
            if isinstance(outer, nn.TransformerEncoder) and _may_nest_while_learning(outer):
                return (
                    "is in a frozen nn.TransformerEncoder, which hands padded batches on in a form that "
                    "blocks cannot learn in; build it with enable_nested_tensor=False"
                )
        return None


def _may_nest_while_learning(stack: nn.TransformerEncoder) -> bool:
    nests = getattr(stack, "use_nested_tensor", False) and torch.backends.mha.get_fastpath_enabled()
    first = next(iter(stack.layers), None)
    return (
        bool(nests) and first is not None and not any(p.requires_grad for p in first.parameters())
    )


@cache
def _fast_path_heeds_hooks() -> bool:
    """Tell whether torch's encoder layers call what they are made of where that has a hook."""
    random_state = RandomState.take()
    layer = nn.TransformerEncoderLayer(4, 2, 4, batch_first=True).eval()
    random_state.restore()
    calls: list[object] = []

    def note(*args: object) -> None:
        calls.append(args)

    layer.linear1.register_forward_hook(note)
    with torch.no_grad():
        layer(torch.zeros(1, 1, 4))
    return bool(calls)


def _shape_of_module(name: str, layer: nn.Module) -> str | None:
    if isinstance(layer, CONTAINERS):
        return f"is {type_of(layer)}, which is never called itself; name the layers in it"
    if isinstance(layer, nn.Sequential):
        inside = f"{name}.{len(layer) - 1}"
        return f"runs every child that it has, so a seed cannot be added to it; name {inside!r}"
    if isinstance(layer, torch.jit.ScriptModule):
        return "is a ScriptModule, which cannot grow"
    return None
