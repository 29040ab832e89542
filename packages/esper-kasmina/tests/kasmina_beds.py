"""Wraps the hosts of `kasmina_hosts` the way that each asks for."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from typing import Any

import torch
from kasmina_factory import QUICK
from kasmina_hosts import HOSTS, Host
from torch import nn

from esper.kasmina import Bed, wrap

ALL_HOSTS = sorted(HOSTS)


def wrap_host(host: Host, model: nn.Module, **options: Any) -> Bed:
    """Wrap `model` as its kind asks for, with short stages."""
    example = host.batch(0)[0] if host.needs_example else None
    return wrap(
        model, targets=host.targets, example=example, stages=QUICK, **dict(host.options), **options
    )


def bed_of(name: str, **options: Any) -> tuple[Host, Bed, torch.optim.Optimizer]:
    """Return one kind of host with seeds, attached to Adam."""
    host = HOSTS[name]
    model = host.make()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    bed = wrap_host(host, model, **options)
    bed.attach(optimizer)
    return host, bed, optimizer
