"""What the port `Library` promises: a model so simple that it can be seen to be right.

`test_any_history` plays the same steps on real libraries and compares. A step's outcome is a value, or the
name of the error that it ends with.
"""

from dataclasses import dataclass, field

from esper.contracts import MAX_CLAIMS, BlueprintStatus, KernelStatus

NUM_DESIGNS = 3
"""Kernel number n is of design n % NUM_DESIGNS."""

SUBMITTED, COMPILED = BlueprintStatus.SUBMITTED.value, KernelStatus.COMPILED.value
VALIDATED, REJECTED = KernelStatus.VALIDATED.value, KernelStatus.REJECTED.value
ARCHIVED = KernelStatus.ARCHIVED.value

NOT_FOUND, ILLEGAL = "NotFoundError", "IllegalTransitionError"
REFUSED, DAMAGED = "KernelRejectedError", "ArtifactIntegrityError"

type Outcome = str | int | bool | None


@dataclass
class Claimable:
    """A design or a kernel, and who works on it."""

    status: str
    holder: str | None = None
    is_overdue: bool = False
    num_claims: int = 0

    def free(self) -> None:
        self.holder, self.is_overdue = None, False


@dataclass
class Kernel(Claimable):
    """What is on file about a kernel."""

    verdicts: list[tuple[bool, str]] = field(default_factory=list[tuple[bool, str]])
    """Whether each passed, and with whose key."""


class Model:
    """Designs, kernels and keys by the numbers and letters that tests call them by."""

    def __init__(self) -> None:
        self.designs: dict[int, Claimable] = {}
        self.kernels: dict[int, Kernel] = {}
        self.keys = {"a": True, "b": True}
        """Whether each that was enrolled is in force."""
        self.damaged: set[int] = set()
        self.stored: set[int] = set()
        """Kernels whose bytes are in the store."""

    def submit(self, design: int) -> Outcome:
        return self.designs.setdefault(design, Claimable(SUBMITTED)).status

    def archive_design(self, design: int) -> Outcome:
        if design not in self.designs:
            return NOT_FOUND
        if self.designs[design].status != ARCHIVED:
            self.designs[design].free()
        self.designs[design].status = ARCHIVED
        return ARCHIVED

    def register(self, numbers: list[int]) -> Outcome:
        designs = [self.designs.get(number % NUM_DESIGNS) for number in numbers]
        if None in designs:
            return NOT_FOUND
        if any(design is not None and design.status == ARCHIVED for design in designs):
            return ILLEGAL
        for number in numbers:
            if number in self.damaged:
                return DAMAGED
            self.stored.add(number)
        for number in numbers:
            if number not in self.kernels:
                self.kernels[number] = Kernel(COMPILED)
                design = self.designs[number % NUM_DESIGNS]
                if design.status == SUBMITTED:
                    design.status = COMPILED
                    design.free()
        return self.kernels[numbers[0]].status

    def judge(self, number: int, *, passed: bool, key: str) -> Outcome:
        kernel = self.kernels.get(number)
        if kernel is None:
            return NOT_FOUND
        if passed and not self.keys.get(key, False):
            return REFUSED
        if kernel.status == ARCHIVED:
            return ILLEGAL
        kernel.verdicts.append((passed, key))
        kernel.status = VALIDATED if passed else REJECTED
        kernel.free()
        return kernel.status

    def judge_again(self, number: int, index: int) -> Outcome:
        """Deliver an earlier report once more."""
        kernel = self.kernels[number]
        passed, key = kernel.verdicts[index]
        if passed and not self.keys[key]:
            return REFUSED
        return kernel.status

    def archive_kernel(self, number: int) -> Outcome:
        kernel = self.kernels.get(number)
        if kernel is None:
            return NOT_FOUND
        if kernel.status != ARCHIVED:
            kernel.free()
        kernel.status = ARCHIVED
        return ARCHIVED

    def enroll(self, key: str) -> Outcome:
        return True if self.keys.setdefault(key, True) else ILLEGAL

    def revoke(self, key: str) -> Outcome:
        if key not in self.keys:
            return NOT_FOUND
        if self.keys[key]:
            for kernel in self.kernels.values():
                if kernel.status == VALIDATED and kernel.verdicts[-1][1] == key:
                    kernel.status, kernel.num_claims = COMPILED, 0
        self.keys[key] = False
        return True

    def claim(self, what: str, holder: str) -> Outcome:
        """Return the number of what is handed out, oldest first."""
        among = self.designs if what == "design" else self.kernels
        waiting = SUBMITTED if what == "design" else COMPILED
        for number, each in among.items():
            is_free = each.holder is None or each.is_overdue
            if each.status == waiting and is_free and each.num_claims < MAX_CLAIMS:
                each.holder, each.is_overdue = holder, False
                each.num_claims += 1
                return number
        return None

    def renew(self, what: str, number: int, holder: str) -> Outcome:
        found = self._claimed(what, number, holder)
        return found is not None and not found.is_overdue

    def release(self, what: str, number: int, holder: str) -> Outcome:
        found = self._claimed(what, number, holder)
        if found is None:
            return False
        found.free()
        found.num_claims -= 1
        return True

    def _claimed(self, what: str, number: int, holder: str) -> Claimable | None:
        found = (self.designs if what == "design" else self.kernels).get(number)
        return found if found is not None and found.holder == holder else None

    def end_leases(self) -> Outcome:
        for each in (*self.designs.values(), *self.kernels.values()):
            each.is_overdue = True
        return None

    def collect(self) -> Outcome:
        """Collect garbage, long after everything was stored."""
        self.stored &= self.kernels.keys()
        return len(self.stored)
