"""Pages: put together they are the whole answer, whatever is written between them."""

from collections.abc import Callable, Generator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esper.contracts import (
    BlueprintIR,
    BlueprintQuery,
    BlueprintStatus,
    CompiledKernelArtifact,
    ConfigError,
    Endorsement,
    KernelQuery,
    SiteKind,
    ValidationReport,
)
from esper.urza import open_file_store, open_library
from esper.urza.library import SqlLibrary

pytestmark = pytest.mark.long

type MakeIR = Callable[..., BlueprintIR]
type MakeKernel = Callable[..., tuple[CompiledKernelArtifact, bytes]]

_START = datetime(2026, 1, 1, tzinfo=UTC)
_TAGS = ("narrow", "Cheap", "50%_gated")
ORDERS = ("kernel_id", "num_parameters", "latency_us", "memory_bytes", "flops", "created_at")


@pytest.fixture
def library(
    library_url: str,
    tmp_path: Path,
    enroll: Callable[[SqlLibrary], None],
    make_ir: MakeIR,
    make_kernel: MakeKernel,
    make_report: Callable[..., ValidationReport],
    make_endorsement: Callable[..., Endorsement],
) -> Generator[SqlLibrary]:
    """A library with twelve kernels, of which some are equal in what they are ordered by."""
    made = open_library(library_url, open_file_store((tmp_path / "artifacts").as_uri()))
    made.open()
    enroll(made)
    made.submit_blueprint(make_ir())
    for number in range(12):
        kernel, blob = make_kernel(
            make_ir(),
            number,
            num_parameters=100 * (number % 3),
            tags=_TAGS[: number % 4],
            created_at=_START + timedelta(seconds=number // 4),
        )
        made.register_kernel(kernel, blob)
        if number % 3:
            report = make_report(kernel.kernel_id, latency_us=float(number % 2), flops=number % 5)
            made.record_validation(report, make_endorsement(kernel))
    yield made
    made.close()


_share_fixtures = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def _walk(library: SqlLibrary, query: KernelQuery) -> list[str]:
    found: list[str] = []
    after = None
    while True:
        page = library.find_kernels(query.model_copy(update={"after": after}))
        assert len(page.items) <= query.limit
        found += [kernel.kernel_id for kernel in page.items]
        if page.next is None:
            return found
        after = page.next


@_share_fixtures
@given(
    order_by=st.sampled_from(ORDERS),
    descending=st.booleans(),
    preferred=st.frozensets(st.sampled_from(_TAGS), max_size=3),
    limit=st.integers(1, 13),
)
def test_pages_together_are_the_whole_in_order(
    library: SqlLibrary, order_by: str, descending: bool, preferred: frozenset[str], limit: int
) -> None:
    asked = {"order_by": order_by, "descending": descending, "preferred_tags": preferred}
    query = KernelQuery.model_validate({"status": None, "limit": limit} | asked)
    everything = library.query(query.model_copy(update={"limit": 1000}))

    def place(kernel: CompiledKernelArtifact) -> tuple[int, bool, float, str]:
        source = kernel if hasattr(kernel, order_by) else kernel.report
        value = None if source is None else getattr(source, order_by)
        if isinstance(value, datetime):
            value = value.timestamp()
        key = 0.0 if value is None or isinstance(value, str) else float(value)
        return (
            -len(preferred & set(kernel.tags)),
            value is None,
            -key if descending else key,
            kernel.kernel_id,
        )

    if order_by != "kernel_id" or not descending:
        assert everything == sorted(everything, key=place)
    else:
        assert [k.kernel_id for k in everything] == sorted(
            (k.kernel_id for k in everything),
            key=lambda each: (
                -len(preferred & set(library.get_kernel(each).tags)),
                -int(each, 16),
            ),
        )
    assert len(everything) == 12
    assert _walk(library, query) == [kernel.kernel_id for kernel in everything]


def test_what_is_registered_between_pages_neither_hides_nor_repeats_anything(
    library: SqlLibrary, make_ir: MakeIR, make_kernel: MakeKernel
) -> None:
    query = KernelQuery(status=None, order_by="num_parameters", limit=3)
    before = [kernel.kernel_id for kernel in library.query(query.model_copy(update={"limit": 99}))]
    seen: list[str] = []
    after = None
    for number in range(100, 200):
        page = library.find_kernels(query.model_copy(update={"after": after}))
        seen += [kernel.kernel_id for kernel in page.items]
        library.register_kernel(*make_kernel(make_ir(), number, num_parameters=number % 300))
        after = page.next
        if after is None:
            break
    assert len(seen) == len(set(seen))
    assert [each for each in seen if each in before] == before


@pytest.mark.parametrize(
    "after", ["?", "e30", "W10", "bm8", "WzEsMiwzLDRd", "WyJrZXJuZWxfaWQgMCAwIiwgMCwgMSwgMl0"]
)
def test_a_made_up_cursor_is_refused(library: SqlLibrary, after: str) -> None:
    with pytest.raises(ConfigError, match="is not where a page of this query ended"):
        library.find_kernels(KernelQuery(after=after))


def test_a_cursor_of_another_order_is_refused(library: SqlLibrary) -> None:
    after = library.find_kernels(KernelQuery(status=None, limit=1)).next
    assert after is not None
    for other in (KernelQuery(descending=True), KernelQuery(order_by="flops")):
        with pytest.raises(ConfigError, match="with the same order"):
            library.find_kernels(other.model_copy(update={"after": after}))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", 12),
        ("resid", 12),
        ("RESIDUAL cheap", 6),
        ("%", 3),
        ("50%_g", 3),
        ("5_%", 0),
        ("nowhere", 0),
    ],
)
def test_text_is_searched_for_in_names_and_tags(library: SqlLibrary, text: str, found: int) -> None:
    assert len(library.query(KernelQuery(status=None, text=text))) == found


def test_blueprints_are_found_a_page_at_a_time(library: SqlLibrary, make_ir: MakeIR) -> None:
    for number in range(5):
        library.submit_blueprint(make_ir(f"design_{number}"))
    library.submit_blueprint(make_ir("conv", SiteKind.CHANNELS_2D))
    query, found = BlueprintQuery(limit=2), list[str]()
    while True:
        page = library.find_blueprints(query)
        found += [blueprint.blueprint_id for blueprint in page.items]
        if page.next is None:
            break
        query = query.model_copy(update={"after": page.next})
    assert found == [blueprint.blueprint_id for blueprint in library.list_blueprints()]
    assert len(found) == 7

    def names(**asked: object) -> list[str]:
        items = library.find_blueprints(BlueprintQuery.model_validate(asked)).items
        return [blueprint.ir.name for blueprint in items]

    assert names(status=BlueprintStatus.COMPILED) == ["residual"]
    assert names(kind=SiteKind.CHANNELS_2D) == ["conv"]
    assert len(names(text="DESIGN_")) == 5
