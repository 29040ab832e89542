"""The ports: how the parts of Esper meet without importing each other.

Each backend package implements one and registers a factory as an entry point (see `registry`); the
ports of the message bus, of the library and of its artifact store are in `bus_port`, `library_port` and
`artifact_port`. Methods raise `EsperError` children only; a driver's own exceptions are wrapped at the
boundary.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from esper.contracts.artifact_port import ArtifactStore
from esper.contracts.blueprints import BlueprintIR
from esper.contracts.bus_port import Bus
from esper.contracts.kernels import CompiledKernelArtifact
from esper.contracts.library_port import Library
from esper.contracts.messages import Payload, TopicNames
from esper.contracts.operational import (
    HealthSignal,
    KasminaCommand,
    SeedEvent,
    SeedStatus,
    Site,
)


class SeedBed(Protocol):
    """A host model with seeds in it. Kasmina implements it.

    Belongs to the training thread. Opaque torch objects are typed `Any` here, because the contracts
    do not import torch.
    """

    @property
    def model(self) -> Any:
        """The host (`torch.nn.Module`), the very object that was wrapped."""
        ...

    @property
    def sites(self) -> Sequence[Site]:
        """The places that carry seeds, input side first."""
        ...

    @property
    def blueprints(self) -> Sequence[BlueprintIR]:
        """The designs that fit at least one of the sites."""
        ...

    @property
    def step(self) -> int:
        """Optimizer steps since the bed was attached."""
        ...

    def seeds(self) -> Sequence[SeedStatus]:
        """Return every seed as it stands, in order of its id."""
        ...

    def attach(
        self,
        optimizer: Any,
        scheduler: Any | None = None,
        *,
        scaler: Any | None = None,
        copies: Sequence[Any] = (),
    ) -> None:
        """Follow this `torch.optim.Optimizer`.

        Its steps drive ramps and isolated training, and grafted parameters join it. `scheduler` and
        `scaler` are restored with it on an undo. `copies` are modules of the host's architecture
        (moving averages, teachers) that grow and shrink with it.
        """
        ...

    def detach(self) -> None:
        """Stop following the optimizer; seeds stop advancing. Idempotent."""
        ...

    def trust(self, public_key: bytes) -> None:
        """Accept endorsements made with this raw Ed25519 public key (32 bytes)."""
        ...

    def admit(self, kernel: CompiledKernelArtifact, blob: bytes) -> None:
        """Verify a kernel (hash, signature, status) and keep it at hand for germination.

        Raises:
            KernelRejectedError: naming the check that failed.

        """
        ...

    def execute(self, command: KasminaCommand) -> SeedEvent | None:
        """Carry out one command at a decision point; None if its `command_id` was carried out before.

        A refused command leaves everything unchanged.

        Raises:
            IllegalTransitionError: if the lifecycle or another seed in flight forbids it.
            NotFoundError: if the seed or the kernel is unknown.
            KernelRejectedError: if the kernel no longer verifies or does not fit the site.

        """
        ...

    def end_epoch(self, epoch: int, *, with_health: bool = True) -> Sequence[HealthSignal]:
        """Count one epoch, and return what `health` does; nothing if not `with_health`."""
        ...

    def health(self, epoch: int) -> Sequence[HealthSignal]:
        """Close the statistics that were sampled since the last time and return one signal per seed.

        What the signals are computed from is sampled while training goes on; computing them can take longer
        than an epoch of a small host, so it is done where somebody wants to know.
        """
        ...

    def watch(self, *, on: bool) -> None:
        """Sample health from now on, as is done from the start, or no longer."""
        ...

    def without(
        self, seed_id: tuple[int, int] | None, *, settle: Callable[[], object] | None = None
    ) -> AbstractContextManager[None]:
        """Within the context, the host computes as if this seed's kernel were not there.

        `settle` runs data through the model first, from which batch norms take their statistics meanwhile:
        those that they keep belong to the model with the kernel, and lag behind its weights. With None for
        the seed nothing is missing, which gives figures of the whole model to compare with.
        """
        ...

    def num_parameters(self) -> int:
        """Count the trainable parameters that are part of the model now."""
        ...

    def weights_sha256(self) -> str:
        """Return the sha256 over names, shapes, types and bytes of the model's whole state."""
        ...

    def save(self, folder: Path | str) -> None:
        """Write `model.safetensors` and `lineage.json` into `folder`."""
        ...

    def checkpoint(self, folder: Path | str, *, beside: Mapping[str, bytes] | None = None) -> None:
        """Write all that a new process needs to go on to the very same final weights, or nothing.

        `beside` are files of the caller's, named like `mine.json`, of the same moment. What the folder
        held before stays until all of it is on disk.

        Raises:
            HostError: if something in the state cannot be written.
            OSError: if the folder cannot be written.

        """
        ...

    def resume(self, folder: Path | str) -> int:
        """Go on where `checkpoint` wrote `folder`; return the step. The bed comes from `SavedBeds.load`.

        Raises:
            ArtifactIntegrityError: if a file was changed or damaged.
            KernelRejectedError: if a kernel no longer verifies, or its crucible is not trusted.
            HostError: if host or optimizer are not like those of the run.

        """
        ...

    def export(
        self, folder: Path | str, example: Any, *, training: bool = False, onnx: bool = False
    ) -> Any:
        """Write the model as a program that runs without Esper; `example` is the inputs of one batch."""
        ...


@dataclass(frozen=True, kw_only=True)
class WorkerContext:
    """What a worker is given to work with."""

    library: Library
    signing_key_file: Path | None = None
    """Where the crucible's private key is (made there when missing); None: a key for this process."""


class Worker(Protocol):
    """A service as a function from messages to messages; `serving.serve` connects it to a bus."""

    @property
    def name(self) -> str:
        """Used as the sender and group name, for example `tezzeret`."""
        ...

    @property
    def topics(self) -> frozenset[TopicNames]:
        """The topics that it handles."""
        ...

    def handle(self, payload: Payload) -> Sequence[Payload]:
        """Do the work for one message and return what to publish; runs in a thread of its own.

        Handling one message twice must have the effect of once.
        """
        ...


class Endorser(Worker, Protocol):
    """A worker that signs its verdicts: the crucible."""

    @property
    def public_key(self) -> bytes:
        """The raw 32-byte Ed25519 public key that its endorsements verify against."""
        ...


type BusFactory = Callable[[str], Bus]
"""`(url) → Bus`, not yet open. Entry points in the group `esper.buses`, named by URL scheme."""

type ArtifactStoreFactory = Callable[[str], ArtifactStore]
"""`(url) → ArtifactStore`, not yet open. Group `esper.artifacts`."""

type LibraryFactory = Callable[[str, ArtifactStore], Library]
"""`(url, artifacts) → Library`, not yet open. Group `esper.libraries`."""


class SeedBedFactory(Protocol):
    """Puts seeds into a model. Group `esper.seedbeds`."""

    def __call__(
        self,
        model: Any,
        /,
        *,
        example: Any | None = None,
        widen: bool = False,
        blueprints: Sequence[BlueprintIR] = (),
        sample_compiled: bool = False,
    ) -> SeedBed:
        """Return the bed of `model`, which grows with `blueprints` beside designs of its own.

        `example` is the inputs of one training batch, for what only a trial run can tell; with `widen`
        layers can also become wider, wherever such a run shows that they can. With `sample_compiled` the
        steps whose health is sampled run uncompiled in a model that is compiled.
        """
        ...


class SavedBeds(Protocol):
    """Reads what beds have written. Group `esper.savedbeds`."""

    def load(
        self,
        model: Any,
        folder: Path | str,
        *,
        blueprints: Sequence[BlueprintIR] = (),
        sample_compiled: bool = False,
    ) -> SeedBed:
        """Grow `model`, a fresh host, into what `save` or `checkpoint` wrote into `folder`.

        Raises:
            NotFoundError: if a file is missing.
            ArtifactIntegrityError: if a file was changed or damaged.
            ConfigError: if it was written by a newer version.
            HostError: if `model` is not such a host.

        """
        ...

    def check(self, folder: Path | str) -> None:
        """Pass silently if every file of a checkpoint is there and unchanged. Raises as `load`."""
        ...

    def read_beside(self, folder: Path | str, name: str) -> bytes:
        """Return, verified, a file that was written beside a checkpoint. Raises as `load`."""
        ...


type WorkerFactory = Callable[[WorkerContext], Worker]
"""`(context) → Worker`. Group `esper.workers`, named by the worker."""
