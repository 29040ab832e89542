"""Decides where seeds can live in a host: pure, touches nothing, lists every problem at once.

`wrap` carries out what a plan without problems says; anybody may look at a plan first.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from torch import nn

from esper.contracts import HostError, KernelSignature, Site, SiteKind
from esper.contracts.words import type_of, with_article
from esper.kasmina.adapters import adapter_of
from esper.kasmina.feeds import Feed, Feeds, feeds
from esper.kasmina.graft import is_graft_name, is_watched
from esper.kasmina.probe import Example, Sighting, probe
from esper.kasmina.refusals import Refusals, outside_layers, refuse_host
from esper.kasmina.shapes import shape_of
from esper.kasmina.targets import Target, blocks, defaults, match, named_modules

DTYPES = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}

_MOST_NAMED = 3
"""Of parameters outside any layer; a host may have hundreds."""

THE_MODEL = "the model"
"""What a message calls the layer without a name."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Where seeds would live, or why they cannot."""

    sites: tuple[Site, ...] = ()
    """Input side first: in order of registration, a block after what is within it."""
    problems: tuple[str, ...] = ()
    """What keeps the host from being wrapped; empty when it can be."""
    refused: tuple[str, ...] = ()
    """Layers that carry no seed, each with the reason."""

    def check(self) -> None:
        """Pass silently if there is no problem.

        Raises:
            HostError: listing every problem.

        """
        if self.problems:
            raise HostError(
                "this host cannot carry seeds as asked:\n- " + "\n- ".join(self.problems)
            )


def plan(
    model: nn.Module,
    targets: Sequence[Target] | None = None,
    *,
    example: Example | None = None,
    chunks: int = 1,
    depth: int = 1,
    causal: bool | None = None,
    widen: bool = False,
) -> Plan:
    """Find the sites of `model` for seeds.

    Args:
        model: the host.
        targets: what to use: qualified names (`encoder.fc1`), globs over them (`blocks.*` for one
            level, `blocks.**` for all below), types, or predicates `(name, module) → bool`. By
            default every Linear and convolution, recurrent layers and attention as a whole, torch's
            transformer layers and those within them; the last layer, the output head, is left out. With an
            example also every block of layers in an `nn.Sequential` or `nn.ModuleList` that returns one
            tensor.
        example: inputs of one training batch (a tensor, a tuple of arguments, or a dict of keyword
            arguments), run through a copy of the model. It finds layers that never run, and makes
            sites of blocks of the user's own.
        chunks: into how many equal parts to split each site's features, one seed each.
        depth: how many blocks each chunk can carry in a row.
        causal: whether tokens may only look back at sequence sites. By default an example decides;
            without one they may not look ahead.
        widen: whether there are also places for new units beside those of a layer, wherever one linear
            layer or convolution is fed by another alone, or a linear layer by a convolution, and for paths
            past all layers of such a row. Only an example can tell, so it is needed; the plan's `refused`
            says why elsewhere there is none.

    """
    if any(is_watched(module) for module in model.modules()):
        return Plan(problems=("it is already wrapped; use its bed, or unwrap() it first",))
    if reason := refuse_host(model):
        return Plan(problems=(reason,))
    if problems := _wrong_arguments(targets, chunks, depth, causal):
        return Plan(problems=problems)
    if widen and example is None:
        return Plan(problems=("widen=True needs example=…, one training batch's inputs",))
    layers = {n: m for n, m in named_modules(model).items() if not is_graft_name(n)}
    survey = _Survey(model, layers, chunks=chunks, depth=depth, causal=causal)
    named = match(layers, targets) if targets is not None else defaults(layers)
    if example is not None:
        if targets is None:
            survey.blocks = frozenset(blocks(layers))
            named = {"": [*named[""], *survey.blocks]}
        names = {name for matches in named.values() for name in matches}
        if widen:
            survey.find_feeds(example)
            names |= survey.feeds.across  # what new units cost there is asked, too
        try:
            survey.sightings = probe(model, example, sorted(names))
        except HostError as error:
            return Plan(problems=(str(error), *survey.unmatched(named)))
    return survey.judge(named, by_default=targets is None)


def plan_sites(model: nn.Module, sites: Sequence[Site]) -> Plan:
    """Plan exactly `sites`, as an earlier plan for such a host gave them (a saved model's)."""
    if any(is_watched(module) for module in model.modules()):
        return Plan(problems=("it is already wrapped; use its bed, or unwrap() it first",))
    if reason := refuse_host(model):
        return Plan(problems=(reason,))
    layers = {n: m for n, m in named_modules(model).items() if not is_graft_name(n)}
    refusals = Refusals(layers)
    problems: list[str] = []
    found: list[Site] = []
    for site in sites:
        layer = layers.get(site.name)
        if layer is None:
            problems.append(f"the site {site.name!r} is missing")
        elif reason := refusals.of(site.name):
            problems.append(f"{site.name} {reason}")
        elif type(layer).__name__ != site.module_type:
            problems.append(
                f"{site.name} is {type_of(layer)}; it was {with_article(site.module_type)}"
            )
        else:
            where = {"device": device_of(layer, model).type}
            signature = site.signature.model_copy(update=where)
            width = adapter_of(type(layer)).width
            expected = site.signature.features * site.num_seeds
            if width is not None and width(layer) != expected:
                problems.append(f"{site.name} has {width(layer)} features; it had {expected}")
            if site.widens is not None and site.widens not in layers:
                problems.append(f"the layer {site.widens!r}, which became wider, is missing")
            found.append(site.model_copy(update={"signature": signature}))
    return Plan(sites=tuple(found), problems=tuple(problems))


def device_of(layer: nn.Module, model: nn.Module) -> torch.device:
    """Return where a layer computes: the device of its first parameter, or of the model's."""
    first = next(layer.parameters(), None)
    first = next(model.parameters(), None) if first is None else first
    return torch.device("cpu") if first is None else first.device


class _Survey:
    """What is known of each layer while one plan is made."""

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Module],
        *,
        chunks: int,
        depth: int,
        causal: bool | None,
    ) -> None:
        self.sightings: Mapping[str, Sighting] = {}
        self.feeds = Feeds(pairs={}, paths={})
        self.blocks: Set[str] = frozenset()
        """Sites by default if they can be, without a word otherwise: nobody asked for them."""
        self._model = model
        self._layers = layers
        self._chunks = chunks
        self._depth = depth
        self._causal = causal
        self._refusals = Refusals(layers)
        self._signatures: dict[tuple[object, ...], KernelSignature] = {}

    def find_feeds(self, example: Example) -> None:
        """Find where layers could become wider; a host that does not let itself be examined has none."""
        try:
            self.feeds = feeds(self._model, self._layers, example)
        except HostError as error:
            self.feeds = Feeds(pairs={"the output": str(error)}, paths={})

    def judge(self, named: Mapping[str, list[str]], *, by_default: bool) -> Plan:
        """Return the plan for what each target named."""
        names = {name for matches in named.values() for name in matches}
        ordered = [name for name in self._layers if name in names]
        verdicts = {name: self._signature(name) for name in ordered}
        for name in self.blocks:
            if isinstance(verdicts[name], str):
                ordered.remove(name)
        if by_default and ordered and not isinstance(verdicts[ordered[-1]], str):
            head = ordered[-1]
            verdicts[head] = "is the output head; name it in targets to use it"
            for name in ordered:
                if head.startswith(f"{name}."):
                    verdicts[name] = "holds the output head; name it in targets to use it"
        refused = {n: v for n, v in verdicts.items() if isinstance(v, str) and n in ordered}
        problems = [] if by_default else self._problems(named, refused)
        usable = [name for name in ordered if name not in refused]
        wider, not_wider = self._wider(names)
        if not usable and not wider and not problems:
            lines = [f"{name or THE_MODEL} {reason}" for name, reason in refused.items()]
            problems = ["it has no layer for a seed", *(lines or _no_layers(self._layers))]
        # Left out where it is the default: one field less costs 500 bytes less.
        depth = {"depth": self._depth} if self._depth > 1 else {}
        chunks = {"num_seeds": self._chunks} if self._chunks > 1 else {}
        places = [(name, {"signature": verdicts[name], **chunks}, name) for name in usable] + [
            (name, {"signature": signature, **feed.fields}, feed.wide)
            for name, feed, signature in wider
        ]
        order = _ends(self._layers)
        places.sort(key=lambda place: (order[place[2]], place[1].get("spans", 0)))
        return Plan(
            sites=tuple(
                Site.model_validate(
                    {
                        "layer_id": i,
                        "name": name,
                        "module_type": type(self._layers[name]).__name__,
                        **fields,
                        **depth,
                        **self._cost(name if "reads_all_positions" in fields else first),
                    }
                )
                for i, (name, fields, first) in enumerate(places)
            ),
            problems=tuple(problems),
            refused=(
                *(f"{name or THE_MODEL} {reason}" for name, reason in refused.items()),
                *(
                    f"nothing can be wider before {name}, which {why}"
                    for name, why in not_wider.items()
                ),
            ),
        )

    def _cost(self, name: str) -> dict[str, float]:
        """Return what parameters cost at this layer (`Site.cost`), where an example told."""
        sighting = self.sightings.get(name)
        return {} if sighting is None else {"cost": float(f"{sighting.cost:.4g}")}

    def _wider(
        self, names: Set[str]
    ) -> tuple[list[tuple[str, Feed, KernelSignature]], dict[str, str]]:
        """Return the places of new units, with the layers that they add to; and where there are none, why."""
        found: list[tuple[str, Feed, KernelSignature]] = []
        refused: dict[str, str] = {}
        for name, feed in (*self.feeds.pairs.items(), *self.feeds.paths.items()):
            if isinstance(feed, str):
                refused[name] = feed
                continue
            if feed.wide not in names:
                continue
            reason = self._refusals.of(name) or self._refusals.of(feed.wide)
            shape = shape_of(self._layers[name], None)
            if reason is not None or isinstance(shape, str):
                refused[name] = reason or str(shape)
                continue
            kind, width = shape
            alone = self._shared_signature(kind, width, self._layers[name], None)
            found.append((name, feed, alone.model_copy(update={"inputs": feed.num_read})))
        return found, refused

    def unmatched(self, named: Mapping[str, list[str]]) -> list[str]:
        """Say which targets match no layer at all."""
        there = ", ".join(defaults(self._layers)[""]) or "none"
        return [
            f"target {target!r} matches no layer; there are: {there}"
            for target, matches in named.items()
            if target and not matches
        ]

    def _problems(self, named: Mapping[str, list[str]], refused: Mapping[str, str]) -> list[str]:
        """Say which targets led nowhere, and why."""
        problems: list[str] = []
        for target, matches in named.items():
            if not matches:
                problems.extend(self.unmatched({target: matches}))
            elif all(name in refused for name in matches):
                problems.extend(
                    f"target {target!r}: {name or THE_MODEL} {refused[name]}" for name in matches
                )
        return problems

    def _signature(self, name: str) -> KernelSignature | str:
        """Return what a seed at this layer calls for, or why there can be none."""
        layer = self._layers[name]
        if reason := self._refusals.of(name):
            return reason
        sighting = self.sightings.get(name)
        if sighting is not None and (reason := _unfit(sighting)):
            return reason
        shape = shape_of(layer, None if sighting is None else sighting.features)
        if isinstance(shape, str):
            return shape
        kind, width = shape
        if kind is SiteKind.SEQUENCE and self._looks_back_only(sighting):
            kind = SiteKind.CAUSAL_SEQUENCE
        if kind is SiteKind.CHANNELS_1D and self._causal:
            return (
                "has channels along an axis, and blocks for those look both ways; with causal=True name "
                "other layers"
            )
        if width % self._chunks:
            return f"has {width} features, which do not split into {self._chunks} equal chunks"
        return self._shared_signature(kind, width // self._chunks, layer, sighting)

    def _looks_back_only(self, sighting: Sighting | None) -> bool:
        if self._causal is not None:
            return self._causal
        return sighting is None or not sighting.looks_ahead

    def _shared_signature(
        self, kind: SiteKind, width: int, layer: nn.Module, sighting: Sighting | None
    ) -> KernelSignature:
        """Return one signature object for all sites that are alike; a host may have thousands."""
        device = device_of(layer, self._model).type
        weight = next((p for p in layer.parameters() if p.is_floating_point()), None)
        if weight is None and sighting is not None and sighting.features is not None:
            dtype = sighting.features.dtype
        else:
            weight = next(self._model.parameters(), weight) if weight is None else weight
            dtype = torch.float32 if weight is None else weight.dtype
        key = (kind, width, dtype, device)
        if key not in self._signatures:
            self._signatures[key] = KernelSignature.model_validate(
                {"kind": kind, "features": width, "dtype": DTYPES[dtype], "device": device}
            )
        return self._signatures[key]


def _ends(layers: Mapping[str, nn.Module]) -> dict[str, tuple[int, int]]:
    """Return keys that sort modules by where they end: a block after its last layer."""
    ends: dict[str, tuple[int, int]] = {}
    for index, name in enumerate(layers):
        parts = name.split(".")
        for depth in range(len(parts), 0, -1):
            ends[".".join(parts[:depth])] = (index, -depth)
    return ends


def _unfit(sighting: Sighting) -> str | None:
    if sighting.num_calls == 0:
        return "is never called by the model, so a seed there would not act"
    if sighting.features is None:
        return (
            f"returns {sighting.returned}, not one tensor of floating-point features; name a layer "
            "inside it, or register_adapter() for its type"
        )
    if sighting.runs_its_children:
        return (
            "runs every child that it has, so a seed cannot be added to it; name a layer inside it, or "
            "the last one"
        )
    if not sighting.reaches_output:
        return "has no effect on the model's output, so a seed there could not help"
    return None


def _wrong_arguments(
    targets: object, chunks: object, depth: object, causal: object
) -> tuple[str, ...]:
    """Say what is wrong with arguments that no host could satisfy."""
    problems: list[str] = []
    if targets is not None and (isinstance(targets, str) or not isinstance(targets, Sequence)):
        problems.append(
            f"targets is {targets!r}; expected a list of names, globs, types or predicates, for "
            "example ['encoder.*', nn.Linear]"
        )
    elif targets is not None and not targets:
        problems.append("targets is empty; leave it out, or name layers")
    for name, number in (("chunks", chunks), ("depth", depth)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            problems.append(f"{name}={number!r}; expected an integer of at least 1")
    if causal is not None and not isinstance(causal, bool):
        problems.append(f"causal={causal!r}; expected True, False or None")
    return tuple(problems)


def _no_layers(layers: Mapping[str, nn.Module]) -> Iterator[str]:
    """Say of a host what it has instead of layers that seeds know."""
    yield "it has no Linear, convolution, recurrent or attention layer"
    if loose := outside_layers(layers):
        shown = ", ".join(loose[:_MOST_NAMED]) + (", …" if len(loose) > _MOST_NAMED else "")
        yield f"it has parameters outside any layer ({shown}); put them into one, such as nn.Linear"
