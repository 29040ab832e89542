"""Makes what the tests need: hosts, data, endorsed kernels, and a bed that has been told to grow."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import Tensor, nn

from esper.contracts import (
    BlueprintIR,
    CheckResult,
    CompiledKernelArtifact,
    Endorsement,
    KasminaCommand,
    KernelSignature,
    KernelStatus,
    SeedEvent,
    SeedState,
    ValidationReport,
    sha256_hex,
)
from esper.kasmina import (
    Bed,
    Block,
    StageLengths,
    build_block,
    builtin_blueprints,
    count_parameters,
    initialise_block,
    key_id_of,
    pack_kernel,
)
from esper.kasmina.library import ROWS
from esper.kasmina.statetree import pack

S = SeedState

TO_TRAINING = (S.GERMINATED, S.LOADING, S.TRAINING)
TO_GRAFTING = (*TO_TRAINING, S.GRAFTING)
TO_STABILIZATION = (*TO_GRAFTING, S.STABILIZATION)
TO_EVALUATING = (*TO_STABILIZATION, S.EVALUATING)
TO_FINE_TUNING = (*TO_EVALUATING, S.FINE_TUNING)
TO_FOSSILIZED = (*TO_FINE_TUNING, S.FOSSILIZED)

PATHS = {path[-1]: path for path in (TO_GRAFTING, TO_STABILIZATION, TO_EVALUATING, TO_FINE_TUNING)}
"""How to reach every state from which a graft can be undone."""

QUICK = StageLengths(
    training_steps=2, ramp_steps=3, settle_steps=2, fine_tuning_steps=2, embargo_epochs=1
)


def packed(state: object) -> tuple[bytes, bytes]:
    """Return the bytes of the two files that hold some state."""
    document, tensors = pack(state)
    return document, safetensors.torch.save(tensors)


@dataclass(kw_only=True)
class Crucible:
    """Endorses kernels with its own key, without measuring them."""

    key: Ed25519PrivateKey = field(
        default_factory=lambda: Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    )

    @property
    def public_key(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    def endorse(self, kernel: CompiledKernelArtifact) -> CompiledKernelArtifact:
        endorsement = Endorsement(
            key_id=key_id_of(self.public_key), signature=self.key.sign(kernel.statement()).hex()
        )
        update = {"endorsement": endorsement, "status": KernelStatus.VALIDATED}
        return CompiledKernelArtifact.model_validate(
            kernel.model_dump() | update | {"report": _passed(kernel.kernel_id)}
        )

    def kernel(
        self,
        ir: BlueprintIR,
        signature: KernelSignature,
        change: Callable[[Block], None] | None = None,
    ) -> tuple[CompiledKernelArtifact, bytes]:
        """Build, pack and endorse a kernel; `change` may spoil its weights first."""
        block = build_block(ir, signature)
        initialise_block(block, torch.Generator().manual_seed(7))
        if change is not None:
            with torch.no_grad():
                change(block)
        blob = pack_kernel(ir, signature, block)
        record = CompiledKernelArtifact(
            kernel_id=sha256_hex(blob),
            blueprint_id=ir.content_hash(),
            blueprint_name=ir.name,
            signature=signature,
            size_bytes=len(blob),
            num_parameters=count_parameters(block),
        )
        return self.endorse(record), blob


def _passed(kernel_id: str) -> ValidationReport:
    check = CheckResult(name="runs", passed=True, value=0.0, limit=1.0, detail="it runs")
    return ValidationReport(
        kernel_id=kernel_id,
        validator_id="tests",
        passed=True,
        checks=(check,),
        probe_shape=(2, 4),
        latency_us=1.0,
        memory_bytes=1,
        num_parameters=1,
        flops=1,
    )


def blueprint(name: str) -> BlueprintIR:
    return next(ir for ir in builtin_blueprints() if ir.name == name)


def explode(block: Block) -> None:
    """Make a block overflow to Inf and NaN wherever it is run."""
    for parameter in block.parameters():
        parameter.fill_(3e38)


type Make = Callable[[], nn.Sequential]

type Change = Callable[[Block], None] | None


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)
    )


def cnn(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout(0.2),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def batch_for(model: nn.Module, step: int = 0) -> tuple[Tensor, Tensor]:
    """Return a batch from a stream of its own: a function of `step` only."""
    generator = torch.Generator().manual_seed(1000 + step)
    first = next(model.children())
    shape = (16, 1, 5, 5) if isinstance(first, nn.Conv2d) else (16, 6)
    x = torch.randn(shape, generator=generator)
    y = torch.randint(0, 3, (16,), generator=generator)
    return x, y


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    *,
    first: int = 0,
    scheduler: Any | None = None,
) -> list[float]:
    """Train like any user would, and return the losses."""
    model.train()
    losses: list[float] = []
    for step in range(first, first + steps):
        x, y = batch_for(model, step)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(float(loss.detach()))
    return losses


def order(
    bed: Bed, target: SeedState, kernel_id: str | None = None, seed_id: tuple[int, int] = (0, 0)
) -> SeedEvent | None:
    """Send one command."""
    command = KasminaCommand(
        seed_id=seed_id,
        target=target,
        kernel_id=kernel_id if target is S.GERMINATED else None,
        epoch=0,
        reason="a test says so",
    )
    return bed.execute(command)


def admit(
    bed: Bed,
    name: str | None = None,
    *,
    site: int = 0,
    change: Callable[[Block], None] | None = None,
) -> str:
    """Admit a kernel of the blueprint `name`, or of the first that fits, for one site; return its id."""
    crucible = Crucible()
    bed.trust(crucible.public_key)
    wanted = bed.sites[site].signature
    ir = blueprint(name) if name else next(ir for ir in bed.blueprints if ir.fits(wanted))
    kernel, blob = crucible.kernel(ir, wanted.model_copy(update={"kind": ir.kind}), change)
    bed.admit(kernel, blob)
    return kernel.kernel_id


ROW_NAMES = frozenset(f"{name}_x{times}" for name, rows in ROWS.items() for times in rows)
"""Built-in designs that repeat others: where time matters, those others speak for them."""


def grow(
    bed: Bed,
    path: Iterable[SeedState],
    *,
    site: int = 0,
    chunk: int = 0,
    name: str | None = None,
    change: Callable[[Block], None] | None = None,
    between: Callable[[SeedState], object] | None = None,
) -> None:
    """Lead one seed along `path`; `between` is called in every state on the way."""
    kernel_id = admit(bed, name, site=site, change=change)
    for state in path:
        order(bed, state, kernel_id, (site, chunk))
        if between is not None:
            between(state)


def wake(block: Block) -> None:
    """Give every weight a small value, so that the block does something."""
    generator = torch.Generator().manual_seed(3)
    for parameter in block.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))


def state_bits(model: nn.Module) -> dict[str, bytes]:
    """Return the model's state as bytes by name."""
    return {
        name: value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, value in model.state_dict().items()
    }
