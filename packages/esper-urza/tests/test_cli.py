"""The command line: what a person types, sees, and is told when it is wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from esper.contracts import (
    BlueprintIR,
    CompiledKernelArtifact,
    Endorsement,
    FieldReport,
    ValidationReport,
)
from esper.urza.cli import app
from esper.urza.library import SqlLibrary

type Make[Record] = Callable[..., Record]
type Urza = Callable[..., str]

_DESIGN = """\
name: shift
kind: features
nodes:
  - {name: out, op: linear, inputs: [input], params: {out: D, init: zeros}}
"""


@pytest.fixture
def kernel(
    library: SqlLibrary,
    make_ir: Make[BlueprintIR],
    make_kernel: Make[tuple[CompiledKernelArtifact, bytes]],
    make_report: Make[ValidationReport],
    make_endorsement: Make[Endorsement],
    make_outcome: Make[FieldReport],
) -> CompiledKernelArtifact:
    library.submit_blueprint(make_ir())
    kernel = library.register_kernel(*make_kernel(make_ir(), tags=("small",)))
    library.record_field_report(make_outcome(run_id="demo", kernel_id=kernel.kernel_id))
    return library.record_validation(make_report(kernel.kernel_id), make_endorsement(kernel))


@pytest.fixture
def urza(library_url: str, artifacts_url: str) -> Urza:
    """Runs a command on the library; returns what it printed, and what it said on standard error."""

    def run(*arguments: str, code: int = 0, answer: str | None = None) -> str:
        where = ["--library", library_url, "--artifacts", artifacts_url]
        done = CliRunner().invoke(app, [*where, *arguments], input=answer)
        assert done.exit_code == code, done.output
        return done.stdout if code == 0 else done.stderr

    return run


def _json(text: str) -> Any:
    return json.loads(text)


def test_a_design_is_filed_listed_shown_and_archived(
    library: SqlLibrary, urza: Urza, tmp_path: Path
) -> None:
    file = tmp_path / "design.yaml"
    file.write_text(_DESIGN)
    assert "shift is on file, SUBMITTED" in urza("blueprints", "submit", str(file))
    (blueprint,) = library.list_blueprints()
    assert "shift" in urza("blueprints", "list", "--text", "shi")
    assert "no blueprints" in urza("blueprints", "list", "--text", "elephant")
    short = blueprint.blueprint_id[:6]
    assert "out = linear(input) out=D, init=zeros" in urza("blueprints", "show", short)
    assert _json(urza("show", short, "--json"))["blueprint_id"] == blueprint.blueprint_id
    assert "give --yes" in urza("blueprints", "archive", short, code=2)
    assert "is ARCHIVED" in urza("blueprints", "archive", short, "--yes")
    assert _json(urza("blueprints", "list", "--json"))["items"][0]["status"] == "ARCHIVED"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("op: linear", "op: magic"), "design.yaml:3: nodes.0: node 'out' uses operator 'magic'"),
        (("kind: features", "kind: feature"), "design.yaml:2: kind"),
        (("name: shift", "nam: shift"), "did you mean 'name'"),
        (("nodes:", "nodes: ["), "is not valid YAML"),
    ],
)
def test_a_malformed_design_is_refused_with_its_line(
    urza: Urza, tmp_path: Path, change: tuple[str, str], said: str
) -> None:
    file = tmp_path / "design.yaml"
    file.write_text(_DESIGN.replace(*change))
    assert said in urza("blueprints", "submit", str(file), code=2)


def test_kernels_are_listed_shown_found_and_archived(
    kernel: CompiledKernelArtifact, urza: Urza
) -> None:
    short = kernel.kernel_id[:8]
    for command in (["kernels", "list"], ["query", "--tag", "small", "--max-latency-us", "50"]):
        listed = urza(*command)
        assert kernel.kernel_id[:12] in listed
        assert "VALIDATED" in listed
        assert "12 µs" in listed
    assert "no kernels" in urza("query", "--not-tag", "small")
    assert "no kernels" in urza("query", "--kind", "features", "--features", "9")
    found = urza(
        "query", "--kind", "features", "--features", "8", "--blueprint", kernel.blueprint_id[:5]
    )
    assert short in found
    shown = urza("kernels", "show", short)
    assert "12.5 µs, 4,096 bytes and 4,096 FLOPs for an input of 32x8" in shown
    assert "ok identity_at_birth" in shown
    assert _json(urza("kernels", "show", short, "--json")) == kernel.model_dump(mode="json")
    assert "is ARCHIVED" in urza("kernels", "archive", short, "--yes")
    assert "no kernels" in urza("query")
    assert short in urza("query", "--status", "any")


def test_pages_follow_one_another(
    library: SqlLibrary,
    urza: Urza,
    make_ir: Make[BlueprintIR],
    make_kernel: Make[tuple[CompiledKernelArtifact, bytes]],
) -> None:
    library.submit_blueprint(make_ir())
    library.register_kernels([make_kernel(make_ir(), number) for number in range(5)])
    found: list[str] = []
    after: list[str] = []
    for size in (2, 2, 1):
        page = _json(urza("kernels", "list", "-n", "2", "--json", *after))
        assert len(page["items"]) == size
        found += [each["kernel_id"] for each in page["items"]]
        after = ["--after", page["next"]]
    assert page["next"] is None
    assert found == sorted({*found})
    assert "there are more: --after" in urza("kernels", "list", "-n", "2")


def test_every_kind_of_record_is_shown(kernel: CompiledKernelArtifact, urza: Urza) -> None:
    assert kernel.report is not None
    assert kernel.endorsement is not None
    assert "passed True" in urza("show", kernel.report.report_id)
    assert "name crucible a" in urza("show", kernel.endorsement.key_id)
    run = urza("show", "demo")
    assert "run demo, 1 outcome" in run
    assert "FOSSILIZED" in run
    (outcome,) = _json(urza("show", "demo", "--json"))
    assert _json(urza("show", outcome["report_id"], "--json"))["kind"] == "outcome"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "nothing"], "no record has an id that begins with 'nothing'"),
        (["show", ""], "is the beginning of several ids"),
        (["kernels", "show", "zz"], "no kernel has an id"),
        (["query", "--status", "lost"], "expected any or one of compiled"),
        (["query", "--kind", "features"], "--kind and --features belong together"),
        (["query", "--max-latency-us", "-1"], "--max-latency-us: Input should be greater than 0"),
        (["query", "--order-by", "beauty"], "--order-by: Input should be 'kernel_id'"),
        (["kernels", "list", "--after", "there"], "is not where a page of this query ended"),
        (["verify", "--head", "library"], "expected CHAIN=HASH"),
        (["blueprints", "submit", "no.yaml"], "no.yaml does not exist"),
    ],
)
@pytest.mark.usefixtures("kernel")
def test_bad_input_is_told_in_one_line(urza: Urza, arguments: list[str], said: str) -> None:
    told = urza(*arguments, code=2)
    assert told.startswith("urza: ")
    assert said in told
    assert told.count("\n") == 1


def test_verification_ends_with_1_and_names_what_is_damaged(
    kernel: CompiledKernelArtifact, urza: Urza, tamper: Callable[[str, bytes | None], None]
) -> None:
    sound = urza("verify")
    assert "all is as it was recorded" in sound
    assert "chain library: 5 events, head" in sound
    heads = {each["chain"]: each["hash"] for each in _json(urza("verify", "--json"))["heads"]}
    assert "all is" in urza("verify", "--head", f"library={heads['library']}")
    tamper(kernel.kernel_id, b"something else")
    run = CliRunner().invoke(app, ["--help"])
    assert "urza verify" in run.stdout
    assert urza("verify", "--no-artifacts")
    urza("verify", code=1)
    urza("verify", "--all", "--head", f"library={'0' * 64}", code=1)


@pytest.mark.parametrize("artifacts_url", ["file"], indirect=True)
def test_garbage_is_shown_and_deleted_only_if_asked(
    library: SqlLibrary, kernel: CompiledKernelArtifact, urza: Urza
) -> None:
    orphan = library.artifacts.put(b"nobody's")
    now = ["--older-than-hours", "0"]
    assert "0 would be deleted" in urza("gc")
    shown = urza("gc", *now)
    assert f"{orphan[:12]}" in shown
    assert "1 would be deleted, 8 bytes" in shown
    assert "Uploads may be going on" in urza("gc", *now, "--delete", code=2)
    deleted = _json(urza("gc", *now, "--delete", "--yes", "--json"))
    assert deleted["removed"] == [orphan]
    assert [each.sha256 for each in library.artifacts.list()] == [kernel.kernel_id]


def test_a_schema_is_brought_up_to_date_once(empty_url: str, tmp_path: Path) -> None:
    where = ["--library", empty_url, "--artifacts", (tmp_path / "artifacts").as_uri()]

    def migrate(*options: str) -> tuple[int, dict[str, str | None]]:
        done = CliRunner().invoke(app, [*where, "migrate", "--json", *options])
        return done.exit_code, _json(done.stdout)

    code, before = migrate("--check")
    assert (code, before["before"], before["after"]) == (1, None, None)
    assert migrate()[1]["after"] == before["newest"]
    assert migrate() == migrate("--check") == (0, dict.fromkeys(before, before["newest"]))


def test_a_runs_own_library_is_found_in_its_folder(
    tmp_path: Path, make_ir: Make[BlueprintIR]
) -> None:
    from esper.urza import open_file_store, open_library

    store = open_file_store((tmp_path / "artifacts").as_uri())
    library = open_library(f"sqlite:///{tmp_path}/library.db", store)
    library.open()
    library.submit_blueprint(make_ir())
    library.close()
    run = CliRunner().invoke(app, ["--run", str(tmp_path), "blueprints", "list"])
    assert "residual" in run.stdout
    missing = CliRunner().invoke(app, ["--run", str(tmp_path / "no"), "verify"])
    assert (missing.exit_code, "has no library.db" in missing.stderr) == (2, True)
    twice = CliRunner().invoke(app, ["--run", str(tmp_path), "--library", "sqlite://", "verify"])
    assert "leave out --library" in twice.stderr


def test_a_database_that_does_not_answer_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    where = ["--library", "postgresql://esper:s3cret@127.0.0.1:1/db", "--artifacts", "file:a"]
    done = CliRunner().invoke(app, [*where, "kernels", "list"])
    assert done.exit_code == 1
    assert "is not available" in done.stderr
    assert "s3cret" not in done.stderr
