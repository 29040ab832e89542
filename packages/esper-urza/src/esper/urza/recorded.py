"""What the chains of events say must be on file: each record's fingerprint and the status it came to.

`verify` feeds it every event, and `rows` compares what is on file with the outcome.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from esper.contracts import ChainedEvent, KernelStatus


@dataclass(slots=True)
class RecordedKernel:
    """What must be in a kernel's row."""

    fingerprint: str
    status: str = KernelStatus.COMPILED.value
    report_id: str | None = None
    endorsement: tuple[str, str] | None = None
    """Key and signature, if the latest verdict came with one."""


@dataclass(slots=True)
class RecordedKey:
    """What must be in the row of a validator's key."""

    public_key: str
    name: str
    is_in_force: bool = True


@dataclass
class Recorded:
    """Everything that the events taken so far have put on file."""

    archived_blueprints: dict[str, bool] = field(default_factory=dict[str, bool])
    """All blueprints, and whether they are archived."""
    kernels: dict[str, RecordedKernel] = field(default_factory=dict[str, RecordedKernel])
    reports: dict[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])
    """Fingerprints, by kernel and report."""
    outcomes: dict[str, str] = field(default_factory=dict[str, str])
    """Fingerprints, by report."""
    keys: dict[str, RecordedKey] = field(default_factory=dict[str, RecordedKey])

    def take(self, event: ChainedEvent) -> None:
        """Take note of one event; of a kind that changes no record, nothing."""
        if (note := _NOTES.get(event.kind)) is not None:
            note(self, event.data)

    def submit(self, data: dict[str, Any]) -> None:
        """Note a design."""
        self.archived_blueprints.setdefault(data["blueprint_id"], False)

    def archive_blueprint(self, data: dict[str, Any]) -> None:
        """Note that a design is archived."""
        self.archived_blueprints[data["blueprint_id"]] = True

    def register(self, data: dict[str, Any]) -> None:
        """Note kernels that nobody has judged."""
        for kernel_id, fingerprint in data["kernels"].items():
            self.kernels[kernel_id] = RecordedKernel(fingerprint)

    def judge(self, data: dict[str, Any]) -> None:
        """Note a verdict."""
        self.reports[data["kernel_id"], data["report_id"]] = data["report"]
        if kernel := self.kernels.get(data["kernel_id"]):
            kernel.report_id = data["report_id"]
            kernel.status = (
                KernelStatus.VALIDATED if data["passed"] else KernelStatus.REJECTED
            ).value
            kernel.endorsement = _endorsement(data["endorsement"])

    def archive_kernel(self, data: dict[str, Any]) -> None:
        """Note that a kernel is archived."""
        if kernel := self.kernels.get(data["kernel_id"]):
            kernel.status = KernelStatus.ARCHIVED.value

    def enroll(self, data: dict[str, Any]) -> None:
        """Note a validator's key."""
        self.keys[data["key_id"]] = RecordedKey(data["public_key"], data["name"])

    def revoke(self, data: dict[str, Any]) -> None:
        """Note that a key is revoked, and what must be judged again."""
        if key := self.keys.get(data["key_id"]):
            key.is_in_force = False
        for kernel_id in data["kernels_to_judge_again"]:
            if kernel := self.kernels.get(kernel_id):
                kernel.status, kernel.endorsement = KernelStatus.COMPILED.value, None

    def file_outcome(self, data: dict[str, Any]) -> None:
        """Note an outcome."""
        self.outcomes[data["report_id"]] = data["report"]

    def adopt_outcomes(self, data: dict[str, Any]) -> None:
        """Note outcomes from before the first event of their run."""
        self.outcomes |= data["outcomes"]

    def adopt(self, data: dict[str, Any]) -> None:
        """Note records from before the first event, as they were then."""
        self.archived_blueprints |= data["blueprints"]
        for kernel_id, found in data["kernels"].items():
            self.kernels[kernel_id] = RecordedKernel(
                found["fingerprint"],
                found["status"],
                found["report_id"],
                _endorsement(found["endorsement"]),
            )
        for kernel_id, report_id, fingerprint in data["reports"]:
            self.reports[kernel_id, report_id] = fingerprint


def _endorsement(data: dict[str, str] | None) -> tuple[str, str] | None:
    return None if data is None else (data["key_id"], data["signature"])


_NOTES: Mapping[str, Callable[[Recorded, dict[str, Any]], None]] = {
    "blueprint_submitted": Recorded.submit,
    "blueprint_archived": Recorded.archive_blueprint,
    "kernels_registered": Recorded.register,
    "kernel_judged": Recorded.judge,
    "kernel_archived": Recorded.archive_kernel,
    "validator_enrolled": Recorded.enroll,
    "validator_revoked": Recorded.revoke,
    "outcome_filed": Recorded.file_outcome,
    "records_adopted": Recorded.adopt,
    "outcomes_adopted": Recorded.adopt_outcomes,
}
"""Kinds of events that change a record."""
