"""The migrations make the schema of the code, once, up and down, from code and command line."""

import subprocess
import sys
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import alembic.config
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.exc import IntegrityError

from esper.contracts import (
    BackendUnavailableError,
    BlueprintIR,
    CompiledKernelArtifact,
    Endorsement,
    FieldReport,
    KernelQuery,
    KernelStatus,
    OperatorNode,
    SiteKind,
    ValidationReport,
)
from esper.urza import open_file_store, open_library, upgrade
from esper.urza.engine import make_engine, parse_url
from esper.urza.library import SqlLibrary
from esper.urza.migrate import SCRIPTS, exclusive, make_config
from esper.urza.schema import blueprints, is_part, metadata_of
from esper.urza.schema import kernels as kernels_table

_OPEN_AT_ONCE = """
import sys
from esper.urza import open_file_store, open_library
library = open_library(sys.argv[1], open_file_store(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
library.open()
print(len(library.list_blueprints()))
library.close()
"""


@pytest.fixture
def engine(empty_url: str) -> Generator[sa.Engine]:
    """An engine on an empty database."""
    made = make_engine(parse_url(empty_url))
    yield made
    made.dispose()


def _downgrade(engine: sa.Engine, revision: str = "base") -> None:
    config = make_config()
    with exclusive(engine) as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


def _upgrade(engine: sa.Engine, revision: str) -> None:
    config = make_config()
    with exclusive(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def _described(engine: sa.Engine) -> dict[str, Any]:
    """Everything that the database says about its tables, checks and keys included."""
    inspector = sa.inspect(engine)
    found: dict[str, Any] = {}
    for table in inspector.get_table_names():
        if table != "alembic_version":
            found[table] = {
                "columns": [
                    (one["name"], str(one["type"]), one["nullable"])
                    for one in inspector.get_columns(table)
                ],
                "primary key": inspector.get_pk_constraint(table),
                "foreign keys": _sorted(inspector.get_foreign_keys(table)),
                "indexes": _sorted(_readable(one) for one in inspector.get_indexes(table)),
                "checks": _sorted(inspector.get_check_constraints(table)),
            }
    return found


def _readable(index: Any) -> dict[str, Any]:
    options = index.get("dialect_options", {})
    return index | {"dialect_options": {name: str(value) for name, value in options.items()}}


def _guards(engine: sa.Engine) -> list[Any]:
    """Every trigger and function of the database."""
    statement = """
        SELECT name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY name
    """
    if engine.dialect.name == "postgresql":
        statement = """
            SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
            UNION SELECT proname, prosrc FROM pg_proc WHERE proname LIKE 'guard%' ORDER BY 1, 2
        """
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(sa.text(statement))]


def _sorted(constraints: Any) -> list[Any]:
    return sorted(constraints, key=lambda one: one["name"])


def test_migrations_make_exactly_the_schema_of_the_code(engine: sa.Engine, empty_url: str) -> None:
    upgrade(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "include_object": is_part}
        )
        several: Any = metadata_of(engine.dialect)  # its type says one
        assert compare_metadata(context, several) == []
    migrated = _described(engine)
    _downgrade(engine)
    for tables in metadata_of(engine.dialect):
        tables.create_all(engine)
    # Alembic compares no check constraints, so the whole descriptions are compared too.
    assert migrated == _described(engine)


def test_drift_would_be_found(engine: sa.Engine) -> None:
    upgrade(engine)
    changed = sa.MetaData()
    for table in _tables(engine):
        table.to_metadata(changed)
    changed.tables["kernels"].append_column(sa.Column("colour", sa.Text))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_object": is_part})
        found = compare_metadata(context, changed)
    assert [one[0] for one in found] == ["add_column"]


def test_up_down_up_leaves_the_same_schema(engine: sa.Engine) -> None:
    upgrade(engine)
    first, guards = _described(engine), _guards(engine)
    assert len(guards) > 15
    assert set(first) == {table.name for table in _tables(engine)}
    _downgrade(engine)
    assert _described(engine) == {}
    assert _guards(engine) == []
    upgrade(engine)
    upgrade(engine)
    assert _described(engine) == first
    assert _guards(engine) == guards


def _tables(engine: sa.Engine) -> list[sa.Table]:
    return [t for one in metadata_of(engine.dialect) for t in one.tables.values()]


def _rows(engine: sa.Engine) -> dict[str, list[str]]:
    """Every row of the tables that there are."""
    there = sa.MetaData()
    there.reflect(engine)
    with engine.connect() as connection:
        return {
            name: sorted(map(repr, connection.execute(sa.select(table))))
            for name, table in there.tables.items()
            if name != "alembic_version"
        }


@pytest.fixture
def filled(
    empty_url: str,
    tmp_path: Path,
    make_ir: Callable[..., BlueprintIR],
    make_kernel: Callable[..., tuple[CompiledKernelArtifact, bytes]],
    make_report: Callable[..., ValidationReport],
    make_endorsement: Callable[..., Endorsement],
    make_outcome: Callable[..., FieldReport],
    enroll: Callable[[SqlLibrary], None],
) -> Generator[SqlLibrary]:
    """A library with a row in every table, and every reference between them in use."""
    library = open_library(empty_url, open_file_store((tmp_path / "artifacts").as_uri()))
    library.open()
    enroll(library)
    for name, kind in (("one", SiteKind.FEATURES), ("two", SiteKind.CHANNELS_2D)):
        ir = make_ir(name, kind)
        library.submit_blueprint(ir)
        kernel, blob = make_kernel(ir)
        library.register_kernel(kernel, blob)
        report = make_report(kernel.kernel_id, tags=("light", name))
        library.record_validation(report, make_endorsement(kernel))
        library.record_field_report(make_outcome(kernel_id=kernel.kernel_id))
    yield library
    library.close()


def test_the_kinds_of_sites_grow_without_touching_a_row(
    engine: sa.Engine, filled: SqlLibrary
) -> None:
    _downgrade(engine, "0002")
    before = _rows(engine)
    assert all(before.values())
    _downgrade(engine, "0001")
    assert _rows(engine) == before
    with pytest.raises(IntegrityError, match="ck_blueprints_kind_known"), engine.begin() as first:
        first.execute(sa.update(blueprints).values(kind="sequence"))
    _upgrade(engine, "0002")
    assert _rows(engine) == before
    with pytest.raises(IntegrityError, match="ck_kernels_kind_known"), engine.begin() as second:
        second.execute(sa.update(kernels_table).values(kind="channels_4d"))
    with pytest.raises(IntegrityError), engine.begin() as third:  # references still hold
        third.execute(sa.delete(blueprints))


def test_a_library_from_before_the_record_is_searched_and_used_as_before(
    engine: sa.Engine, filled: SqlLibrary
) -> None:
    asked = [
        KernelQuery(required_tags=frozenset({"one"})),
        KernelQuery(excluded_tags=frozenset({"one"})),
        KernelQuery(text="TWO light"),
        KernelQuery(order_by="flops", descending=True),
    ]
    before = [filled.query(query) for query in asked]
    assert [len(found) for found in before] == [1, 1, 1, 2]
    _downgrade(engine, "0002")
    upgrade(engine)
    assert [filled.query(query) for query in asked] == before
    assert filled.archive_kernel(before[0][0].kernel_id).status is KernelStatus.ARCHIVED


@pytest.mark.parametrize("kind", SiteKind)
def test_every_kind_of_site_can_be_filed(filled: SqlLibrary, kind: SiteKind) -> None:
    node = OperatorNode(name="act", op="gelu", inputs=("input",))
    filed = filled.submit_blueprint(BlueprintIR(name="only", kind=kind, nodes=(node,)))
    assert filled.get_blueprint(filed.blueprint_id) == filed


def test_a_schema_with_rows_of_new_kinds_does_not_go_back(
    engine: sa.Engine, filled: SqlLibrary
) -> None:
    node = OperatorNode(name="act", op="gelu", inputs=("input",))
    filled.submit_blueprint(BlueprintIR(name="only", kind=SiteKind.SEQUENCE, nodes=(node,)))
    before, described = _rows(engine), _described(engine)
    with pytest.raises(IntegrityError, match="ck_blueprints_kind_known"):
        _downgrade(engine, "0001")
    assert (_rows(engine), _described(engine)) == (before, described)


def test_a_schema_newer_than_the_code_is_refused(
    engine: sa.Engine, empty_url: str, tmp_path: Path
) -> None:
    upgrade(engine)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    library = open_library(empty_url, open_file_store((tmp_path / "artifacts").as_uri()))
    with pytest.raises(BackendUnavailableError, match=r"revision 9999; .*upgrade esper-urza"):
        library.open()
    assert not (tmp_path / "artifacts").exists()


def test_threads_that_migrate_one_database_apply_each_revision_once(empty_url: str) -> None:
    def _migrate(_: int) -> None:
        engine = make_engine(parse_url(empty_url))
        try:
            upgrade(engine)
        finally:
            engine.dispose()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(_migrate, range(8)))
    _assert_migrated_once(empty_url)


@pytest.mark.long
def test_processes_that_open_one_database_apply_each_revision_once(
    empty_url: str, tmp_path: Path
) -> None:
    openers = [
        subprocess.Popen(
            [sys.executable, "-c", _OPEN_AT_ONCE, empty_url, (tmp_path / "a").as_uri()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(10)
    ]
    for opener in openers:
        assert opener.stdout is not None
        assert opener.stdout.readline() == "ready\n"
    for opener in openers:
        assert opener.stdin is not None
        opener.stdin.write("go\n")
        opener.stdin.flush()
    for opener in openers:
        assert opener.communicate(timeout=120) == ("0\n", "")
    _assert_migrated_once(empty_url)


def _assert_migrated_once(url: str) -> None:
    engine = make_engine(parse_url(url))
    try:
        with engine.connect() as connection:
            revisions = connection.execute(sa.text("SELECT version_num FROM alembic_version"))
            assert revisions.scalars().all() == ["0005"]
        assert set(_described(engine)) == {table.name for table in _tables(engine)}
    finally:
        engine.dispose()


@pytest.fixture
def run_alembic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[bool, str]]:
    """Runs Alembic's command line in a project that points at the scripts as the workspace does.

    Returns whether it succeeded, and what it printed.
    """
    (tmp_path / "pyproject.toml").write_text(f'[tool.alembic]\nscript_location = "{SCRIPTS}"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POSTGRES_PASSWORD", raising=False)
    monkeypatch.delenv("DATABASE_URL", raising=False)

    def _run(*arguments: str, database_url: str | None = None) -> tuple[bool, str]:
        if database_url is not None:
            monkeypatch.setenv("DATABASE_URL", database_url)
        try:
            alembic.config.main(argv=arguments)
        except SystemExit as error:
            return error.code == 0, "".join(capfd.readouterr())
        return True, "".join(capfd.readouterr())

    return _run


def test_the_command_line_migrates_the_database_of_the_settings(
    run_alembic: Callable[..., tuple[bool, str]], empty_url: str
) -> None:
    assert run_alembic("upgrade", "head", database_url=empty_url) == (True, "")
    _assert_migrated_once(empty_url)


@pytest.mark.parametrize(
    ("database_url", "told"),
    [
        (None, "no database is configured"),
        ("sqlite:////no/such/folder/library.db", "there is no folder /no/such/folder"),
        ("mysql://host/library", "has scheme 'mysql'"),
    ],
)
def test_the_command_line_tells_what_is_wrong_in_one_line(
    run_alembic: Callable[..., tuple[bool, str]], database_url: str | None, told: str
) -> None:
    succeeded, output = run_alembic("upgrade", "head", database_url=database_url)
    assert not succeeded
    assert told in " ".join(output.split())
    assert "Traceback" not in output


def test_the_command_line_prints_sql_without_a_database(
    run_alembic: Callable[..., tuple[bool, str]],
) -> None:
    url = "postgresql://user:hunter2@nowhere/library"
    succeeded, output = run_alembic("upgrade", "head", "--sql", database_url=url)
    assert succeeded
    assert "CREATE TABLE kernels" in output
    assert "FOREIGN KEY(kernel_id, report_id)" in output
    assert "hunter2" not in output


def test_a_script_for_sqlite_is_refused_because_it_would_have_to_read_the_database(
    run_alembic: Callable[..., tuple[bool, str]],
) -> None:
    succeeded, output = run_alembic("upgrade", "head", "--sql", database_url="sqlite:///no.db")
    assert not succeeded
    assert "run it without --sql" in output
    assert "Traceback" not in output
