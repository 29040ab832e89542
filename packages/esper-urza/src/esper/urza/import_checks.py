"""What an exported file says is verified before anything of it is stored: every line, link and signature.

`importing` calls `check_lists` first. Whether the records are what the chains say, and endorsed as they say,
is verified by the same code as in any library (`rows`), once the rows are there and before they count.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from esper.contracts import (
    GENESIS,
    LIBRARY_CHAIN,
    ArtifactIntegrityError,
    ChainedEvent,
    KernelStatus,
    check_link,
)
from esper.urza import contents
from esper.urza.contents import KernelOnFile
from esper.urza.exporting import Tell
from esper.urza.lists import Lists
from esper.urza.manifests import ChainHead
from esper.urza.recorded import Recorded
from esper.urza.trust import Record

_OFTEN = 1000
"""Records between two words on the progress."""


@dataclass(kw_only=True)
class Found:
    """What the lists of a file hold, as far as the rest of the import needs it."""

    record: Record = field(default_factory=Record)
    """What the library's chain says about signing keys."""
    recorded: Recorded = field(default_factory=Recorded)
    """What all chains say must be on file."""
    artifacts: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    """Hash and size, in their order."""


def check_lists(lists: Lists, tell: Tell) -> Found:
    """Pass if everything in the lists fits together, and return what they hold.

    Raises:
        ArtifactIntegrityError: naming the line that was changed, or is out of order, or refers to
            something that is not there.
        ChainError: naming the first event that is changed, missing or out of order.
        ManifestError: if the record says something about signing keys that no library writes.

    """
    found = Found()
    checks = _Checks(found)
    for name, check in (
        (contents.BLUEPRINTS, checks.blueprint),
        (contents.KEYS, checks.key),
        (contents.KERNELS, checks.kernel),
        (contents.REPORTS, checks.report),
        (contents.OUTCOMES, checks.outcome),
    ):
        _check_each(lists, name, check, tell)
    checks.all_reports_are_there()
    chains = _Chains(found)
    _check_each(lists, contents.LIBRARY_EVENTS, chains.library_event, tell)
    _check_each(lists, contents.RUN_EVENTS, chains.run_event, tell)
    if tuple(chains.heads()) != lists.manifest.chains:
        raise ArtifactIntegrityError(
            "the manifest names other chains, or other ends of them, than the file holds: events are "
            "missing or were added; export the library again"
        )
    return found


def _check_each(lists: Lists, name: str, check: Callable[[bytes, str], None], tell: Tell) -> None:
    total = next(member.num_records for member in lists.manifest.members if member.name == name)
    for number, (where, line) in enumerate(lists.lines(name), 1):
        check(line, where)
        if number % _OFTEN == 0:
            tell(f"verify {name}", number, total)
    tell(f"verify {name}", total, total)


class _Checks:
    """What was read so far, for what refers to it."""

    def __init__(self, found: Found) -> None:
        self._found = found
        self._last: dict[str, tuple[bytes, ...]] = {}
        self._blueprints: set[str] = set()
        self._keys_in_force: set[str] = set()
        self._kernels: set[str] = set()
        self._verdicts: dict[tuple[str, str], tuple[KernelStatus, str]] = {}
        """The status that each kernel has by its latest report, and where that is said."""

    def blueprint(self, line: bytes, where: str) -> None:
        blueprint_id = contents.read_blueprint(line, where).blueprint_id
        self._in_order(contents.BLUEPRINTS, where, blueprint_id)
        self._blueprints.add(blueprint_id)

    def key(self, line: bytes, where: str) -> None:
        key = contents.read_key(line, where)
        self._in_order(contents.KEYS, where, key.key_id)
        if key.revoked_at is None:
            self._keys_in_force.add(key.key_id)

    def kernel(self, line: bytes, where: str) -> None:
        on_file = contents.read_kernel(line, where)
        kernel = on_file.registered
        self._in_order(contents.KERNELS, where, kernel.kernel_id)
        if kernel.blueprint_id not in self._blueprints:
            raise ArtifactIntegrityError(f"{where} is of a blueprint that is not in the file")
        self._check_verdict(on_file, where)
        if on_file.report_id is not None:
            self._verdicts[kernel.kernel_id, on_file.report_id] = (on_file.status, where)
        self._kernels.add(kernel.kernel_id)
        self._found.artifacts.append((kernel.kernel_id, kernel.size_bytes))

    def report(self, line: bytes, where: str) -> None:
        report, _ = contents.read_report(line, where)
        self._in_order(contents.REPORTS, where, report.kernel_id, report.report_id)
        if report.kernel_id not in self._kernels:
            raise ArtifactIntegrityError(f"{where} is about a kernel that is not in the file")
        latest = self._verdicts.pop((report.kernel_id, report.report_id), None)
        contradicted = KernelStatus.REJECTED if report.passed else KernelStatus.VALIDATED
        if latest is not None and latest[0] is contradicted:
            raise ArtifactIntegrityError(
                f"{latest[1]} is {contradicted}; its report contradicts that"
            )

    def outcome(self, line: bytes, where: str) -> None:
        report, _ = contents.read_outcome(line, where)
        self._in_order(contents.OUTCOMES, where, report.report_id)

    def all_reports_are_there(self) -> None:
        for _, where in self._verdicts.values():
            raise ArtifactIntegrityError(f"{where} has a report that is not in the file")

    def _in_order(self, name: str, where: str, *key: str) -> None:
        encoded = tuple(part.encode() for part in key)
        if encoded <= self._last.get(name, ()):
            raise ArtifactIntegrityError(f"{where} is there twice, or out of order")
        self._last[name] = encoded

    def _check_verdict(self, on_file: KernelOnFile, where: str) -> None:
        kernel, status = on_file.registered, on_file.status
        if (kernel.status, kernel.report, kernel.endorsement) != (
            KernelStatus.COMPILED,
            None,
            None,
        ):
            raise ArtifactIntegrityError(
                f"{where} was not registered as a kernel that nobody judged"
            )
        if on_file.report_id is None and (
            on_file.endorsement is not None
            or status in (KernelStatus.VALIDATED, KernelStatus.REJECTED)
        ):
            raise ArtifactIntegrityError(f"{where} has a verdict, but no report")
        key_id = None if on_file.endorsement is None else on_file.endorsement.key_id
        if status is KernelStatus.VALIDATED and key_id not in self._keys_in_force:
            raise ArtifactIntegrityError(
                f"{where} is VALIDATED, but not endorsed, or with a key that is not in the file "
                "or was revoked"
            )


class _Chains:
    """Every chain, link by link."""

    def __init__(self, found: Found) -> None:
        self._found = found
        self._heads: dict[str, ChainHead] = {}
        self._run = ""

    def library_event(self, line: bytes, where: str) -> None:
        event = contents.read_library_event(line, where)
        self._link(LIBRARY_CHAIN, event, where)
        self._found.record.add(event)

    def run_event(self, line: bytes, where: str) -> None:
        found = contents.read_run_event(line, where)
        last = self._run.encode()
        is_next = found.chain != LIBRARY_CHAIN and found.chain.encode() >= last
        if not is_next:
            raise ArtifactIntegrityError(f"{where} is out of order")
        self._run = found.chain
        self._link(found.chain, found.event, where)

    def heads(self) -> Iterator[ChainHead]:
        """Give the chains' ends in order of their names."""
        for name in sorted(self._heads, key=str.encode):
            yield self._heads[name]

    def _link(self, chain: str, event: ChainedEvent, where: str) -> None:
        head = self._heads.get(chain)
        seq, previous = (0, GENESIS) if head is None else (head.num_events, head.head)
        check_link(event, where, seq=seq, previous=previous)
        try:
            self._found.recorded.take(event)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ArtifactIntegrityError(
                f"{where} is linked as it should be, but no library writes a {event.kind} like that"
            ) from error
        self._heads[chain] = ChainHead(chain=chain, num_events=seq + 1, head=event.hash)
