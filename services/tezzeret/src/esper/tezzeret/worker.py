"""The forge as a worker: receives submitted blueprints, files kernels, announces them.

Reads `compilation.blueprint.submitted`; what it returns goes to `compilation.kernel.ready`, where the
crucible takes over.
"""

from collections.abc import Sequence

from esper.contracts import (
    BackendUnavailableError,
    BlueprintSubmitted,
    KernelReady,
    Library,
    MessageError,
    Payload,
    TopicNames,
    WorkerContext,
    get_logger,
)
from esper.contracts.words import type_of
from esper.kasmina.operators import missing_operators
from esper.tezzeret.forge import forge_kernel

_log = get_logger(__name__)


class Tezzeret:
    """Builds one kernel for each signature that a blueprint is wanted for."""

    def __init__(self, library: Library) -> None:
        self._library = library

    @property
    def name(self) -> str:
        """Sender and group on the bus."""
        return "tezzeret"

    @property
    def topics(self) -> frozenset[TopicNames]:
        """Submitted blueprints only."""
        return frozenset({TopicNames.COMPILATION_BLUEPRINT_SUBMITTED})

    def handle(self, payload: Payload) -> Sequence[Payload]:
        """Forge the kernels that one `BlueprintSubmitted` asks for; all of them or none.

        Kernels are filed under the hash of their bytes, so a message handled twice changes nothing.

        Raises:
            BlueprintError: if the blueprint cannot be built for one of the signatures.
            BackendUnavailableError: if it uses an operator that is not registered here, where
                another forge may have it.
            NotFoundError: if the blueprint is not in the library.
            MessageError: if `payload` is something else.

        """
        if not isinstance(payload, BlueprintSubmitted):
            raise MessageError(f"tezzeret got {type_of(payload)}, not a BlueprintSubmitted")
        blueprint = self._library.get_blueprint(payload.blueprint_id)
        if missing := missing_operators(blueprint.ir):
            raise BackendUnavailableError(
                f"blueprint {blueprint.ir.name!r} uses {', '.join(missing)}, which is not registered "
                "in this forge; install the package that registers it (entry point esper.operators)"
            )
        forged = [forge_kernel(blueprint, signature) for signature in payload.signatures]
        ready: list[Payload] = []
        for kernel, blob in forged:
            self._library.register_kernel(kernel, blob)
            _log.info(
                "kernel forged",
                kernel=kernel.kernel_id[:12],
                blueprint=kernel.blueprint_name,
                signature=kernel.signature.key,
                num_parameters=kernel.num_parameters,
            )
            ready.append(
                KernelReady(
                    kernel_id=kernel.kernel_id,
                    blueprint_id=kernel.blueprint_id,
                    signature=kernel.signature,
                )
            )
        return ready


def make_worker(context: WorkerContext) -> Tezzeret:
    """Make the forge; the entry point `tezzeret` in the group `esper.workers`."""
    return Tezzeret(context.library)
