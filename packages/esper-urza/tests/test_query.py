"""Queries find what a plain filter over the same records finds, on every database."""

from collections.abc import Callable, Generator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esper.contracts import (
    BlueprintIR,
    CompiledKernelArtifact,
    Endorsement,
    FieldReport,
    KernelQuery,
    KernelSignature,
    KernelStatus,
    MessageError,
    SeedState,
    SiteKind,
    ValidationReport,
)
from esper.urza import open_file_store, open_library
from esper.urza.library import SqlLibrary

type Filled = tuple[SqlLibrary, Sequence[CompiledKernelArtifact]]

_START = datetime(2026, 1, 1, tzinfo=UTC)
_TAGS = ("narrow", "cheap", "gated", "unheard_of")
_share_fixtures = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
"""Examples share the library on purpose: they only read, or write under fresh ids."""


@pytest.fixture
def library(
    library_url: str, tmp_path: Path, enroll: Callable[[SqlLibrary], None]
) -> Generator[SqlLibrary]:
    """An open library; queries never touch the artifact store, so one kind will do."""
    made = open_library(library_url, open_file_store((tmp_path / "artifacts").as_uri()))
    made.open()
    enroll(made)
    yield made
    made.close()


@pytest.fixture
def filled(
    library: SqlLibrary,
    make_ir: Callable[..., BlueprintIR],
    make_kernel: Callable[..., tuple[CompiledKernelArtifact, bytes]],
    make_report: Callable[..., ValidationReport],
    make_endorsement: Callable[..., Endorsement],
) -> Filled:
    """A library with twelve kernels of every status, and the records in no order."""
    designs = (make_ir("one"), make_ir("two"), make_ir("conv", SiteKind.CHANNELS_2D))
    for ir in designs:
        library.submit_blueprint(ir)
    records: list[CompiledKernelArtifact] = []
    for number in range(12):
        kernel, blob = make_kernel(
            designs[number % 3],
            number,
            features=8 if number < 7 else 16,
            num_parameters=100 * (number % 4),
            tags=_TAGS[number % 3 : number % 3 + 1],
            created_at=_START - timedelta(seconds=number // 2),
        )
        record = library.register_kernel(kernel, blob)
        if number % 4:
            report = make_report(
                kernel.kernel_id,
                passed=number % 4 != 1,
                latency_us=float(number % 5),
                memory_bytes=1000 * number,
                tags=_TAGS[: number % 3],
            )
            record = library.record_validation(
                report, make_endorsement(kernel) if report.passed else None
            )
        records.append(record)
    return library, records


_tag_sets = st.frozensets(st.sampled_from(_TAGS), max_size=2)
_signatures = st.builds(
    KernelSignature,
    kind=st.sampled_from(SiteKind),
    features=st.sampled_from([8, 16, 99]),
    dtype=st.sampled_from(["float32", "float64"]),
)
_queries = st.builds(
    KernelQuery,
    signature=st.none() | _signatures,
    status=st.none() | st.sampled_from(KernelStatus),
    required_tags=_tag_sets,
    excluded_tags=_tag_sets,
    max_latency_us=st.none() | st.sampled_from([0.5, 2.0, 4.0, float("inf")]),
    max_memory_bytes=st.none() | st.sampled_from([1, 5000, 2**70]),
    max_parameters=st.none() | st.sampled_from([1, 100, 200, 2**70]),
    order_by=st.sampled_from(["kernel_id", "num_parameters", "latency_us", "created_at"]),
    limit=st.sampled_from([1, 3, 1000]),
)


def _matches(query: KernelQuery, kernel: CompiledKernelArtifact) -> bool:
    report, tags = kernel.report, set(kernel.tags)
    return (
        query.signature in (None, kernel.signature)
        and query.status in (None, kernel.status)
        and query.blueprint_id in (None, kernel.blueprint_id)
        and query.required_tags <= tags
        and not query.excluded_tags & tags
        and (query.max_parameters is None or kernel.num_parameters <= query.max_parameters)
        and (
            query.max_latency_us is None
            or (report is not None and report.latency_us <= query.max_latency_us)
        )
        and (
            query.max_memory_bytes is None
            or (report is not None and report.memory_bytes <= query.max_memory_bytes)
        )
    )


def _expected(
    query: KernelQuery, records: Sequence[CompiledKernelArtifact]
) -> list[CompiledKernelArtifact]:
    keys: dict[str, Callable[[CompiledKernelArtifact], object]] = {
        "kernel_id": lambda one: one.kernel_id,
        "num_parameters": lambda one: one.num_parameters,
        "latency_us": lambda one: (one.report is None, one.report and one.report.latency_us),
        "created_at": lambda one: one.created_at,
    }
    key = keys[query.order_by]
    found = sorted(
        (one for one in records if _matches(query, one)),
        key=lambda one: (key(one), one.kernel_id),  # pyright: ignore[reportArgumentType]
    )
    return found[: query.limit]


@_share_fixtures
@given(query=_queries)
def test_a_query_finds_what_a_plain_filter_finds(filled: Filled, query: KernelQuery) -> None:
    library, records = filled
    found = library.query(query)
    expected = _expected(query, records)
    assert [one.model_dump_json() for one in found] == [one.model_dump_json() for one in expected]


def test_a_query_by_blueprint_finds_its_kernels_only(filled: Filled) -> None:
    library, records = filled
    for blueprint in library.list_blueprints():
        query = KernelQuery(blueprint_id=blueprint.blueprint_id, status=None)
        assert len(library.query(query)) == 4
        assert [one.kernel_id for one in library.query(query)] == [
            one.kernel_id for one in _expected(query, records)
        ]


_words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
_losses = st.none() | st.floats()
_outcomes = st.builds(
    FieldReport,
    run_id=_words,
    seed_id=st.tuples(st.integers(0), st.integers(0)),
    site=st.text(max_size=20),
    kernel_id=st.just("1" * 64),
    blueprint_id=st.just("2" * 64),
    blueprint_name=_words,
    outcome=st.sampled_from(
        [SeedState.FOSSILIZED, SeedState.CULLED, SeedState.CANCELLED, SeedState.ROLLED_BACK]
    ),
    reason=st.text(max_size=20),
    epoch_started=st.integers(0),
    epoch_ended=st.integers(0),
    parameters_added=st.integers(0),
    loss_before=_losses,
    loss_with=_losses,
    loss_without=_losses,
    accuracy_with=st.none() | st.floats(0, 1),
    accuracy_without=st.none() | st.floats(0, 1),
    at=st.datetimes(
        min_value=datetime(1, 1, 2),  # noqa: DTZ001
        max_value=datetime(9999, 12, 30),  # noqa: DTZ001
        timezones=st.timezones(),
    ),
)


@_share_fixtures
@given(report=_outcomes)
def test_any_outcome_comes_back_as_it_was(library: SqlLibrary, report: FieldReport) -> None:
    library.record_field_report(report)
    found = [one.model_dump_json() for one in library.field_reports(report.run_id)]
    assert report.model_dump_json() in found


def test_text_that_a_database_cannot_hold_is_refused_or_kept_never_changed(
    library: SqlLibrary, make_outcome: Callable[..., FieldReport]
) -> None:
    report = make_outcome(run_id="zero \0 byte")
    try:
        library.record_field_report(report)
    except MessageError as error:
        assert "cannot store this value" in str(error)  # noqa: PT017
    else:
        assert library.field_reports(report.run_id)[0].run_id == report.run_id


def test_any_number_of_tags_may_be_asked_for(filled: Filled) -> None:
    library, kernels = filled
    many = frozenset(f"tag {number}" for number in range(90))
    assert library.query(KernelQuery(status=None, required_tags=many)) == []
    none_of_them = library.query(KernelQuery(status=None, excluded_tags=many))
    assert len(none_of_them) == len(kernels)
