"""Lineages: everything that a grown model comes from is in the graph, the tree and the picture."""

import xml.etree.ElementTree as ET
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from esper.contracts import (
    BlueprintIR,
    CompiledKernelArtifact,
    ConfigError,
    Endorsement,
    FieldReport,
    NotFoundError,
    SeedState,
    ValidationReport,
)
from esper.urza import lineage_picture
from esper.urza.cli import app
from esper.urza.library import SqlLibrary
from esper.urza.lineage import Lineage, of_blueprint, of_kernel, of_run

type Make[Record] = Callable[..., Record]

HOSTILE = "<script>&\"'[bold]$\\frac{1}{2}$\x1b[31m"


@pytest.fixture
def grown(
    library: SqlLibrary,
    make_ir: Make[BlueprintIR],
    make_kernel: Make[tuple[CompiledKernelArtifact, bytes]],
    make_report: Make[ValidationReport],
    make_endorsement: Make[Endorsement],
    make_outcome: Make[FieldReport],
) -> SqlLibrary:
    """A library after a run that kept one kernel, culled it elsewhere, and used one of another library."""
    library.submit_blueprint(make_ir("shift"))
    kernel = library.register_kernel(*make_kernel(make_ir("shift")))
    library.record_validation(make_report(kernel.kernel_id), make_endorsement(kernel))
    given = {"run_id": "demo", "kernel_id": kernel.kernel_id, "blueprint_name": "shift"}
    library.record_field_report(make_outcome(**given, report_id="a"))
    library.record_field_report(
        make_outcome(
            **given, report_id="b", outcome=SeedState.CULLED, parameters_added=0, site=HOSTILE
        )
    )
    library.record_field_report(make_outcome(run_id="demo", report_id="c", kernel_id="9" * 64))
    return library


def test_a_run_leads_to_everything_that_it_used(grown: SqlLibrary) -> None:
    found = of_run(grown, "demo")
    kinds = [node.kind for node in found.nodes]
    assert sorted(kinds) == sorted(
        ["run", *["outcome"] * 3, "kernel", "missing", "blueprint", "report", "key"]
    )
    (run,) = [node for node in found.nodes if node.kind == "run"]
    assert dict(run.facts) == {"outcomes": 3, "kept": 2, "parameters_added": 144}
    assert [relation for relation, _ in found.children(found.root)] == ["tried"] * 3
    (kernel,) = [node for node in found.nodes if node.kind == "kernel"]
    relations = {relation: node.kind for relation, node in found.children(kernel.node_id)}
    assert relations == {"built from": "blueprint", "judged in": "report", "endorsed with": "key"}
    used = [edge for edge in found.edges if edge.target == kernel.node_id]
    assert len(used) == 2
    assert Lineage.model_validate_json(found.model_dump_json()) == found


def test_a_kernel_and_a_blueprint_have_lineages_of_their_own(grown: SqlLibrary) -> None:
    kernel_id = next(each for kind, each in grown.find_ids("") if kind == "kernel")
    kernel = of_kernel(grown, kernel_id)
    assert {node.kind for node in kernel.nodes} == {"kernel", "blueprint", "report", "key"}
    (blueprint,) = of_blueprint(grown, grown.list_blueprints()[0].blueprint_id).nodes
    assert blueprint.label == "shift"
    for find in (of_run, of_kernel, of_blueprint):
        with pytest.raises(NotFoundError):
            find(grown, "1" * 64)


def test_the_picture_says_it_all_and_escapes_what_it_is_given(
    grown: SqlLibrary, tmp_path: Path
) -> None:
    svg, png = tmp_path / "lineage.svg", tmp_path / "lineage.png"
    for path in (svg, png):
        lineage_picture.draw(of_run(grown, "demo"), path)
    assert png.read_bytes().startswith(b"\x89PNG\r\n")
    drawn = ET.fromstring(svg.read_text())
    texts = " ".join(
        "".join(each.itertext()) for each in drawn.iter("{http://www.w3.org/2000/svg}text")
    )
    for said in (
        "Lineage of run demo",
        "2 of 3 kept, 144 parameters added",
        "shift at layers.0",
        "culled, epochs 2-7, seed 0,0",
        "of another library",
        "crucible a",
        "passed, 12 µs",
        "not kept",
    ):
        assert said in texts, said
    assert "<script>" in texts
    assert list(drawn.iter("{http://www.w3.org/2000/svg}script")) == []
    assert "\x1b" not in texts
    before = svg.read_bytes()
    lineage_picture.draw(of_run(grown, "demo"), svg)
    assert svg.read_bytes() == before


@pytest.mark.parametrize("number", [1, 40])
def test_no_two_boxes_overlap(
    library: SqlLibrary, make_outcome: Make[FieldReport], number: int
) -> None:
    for each in range(number):
        library.record_field_report(
            make_outcome(run_id="demo", report_id=str(each), kernel_id=f"{each:064x}")
        )
    columns = lineage_picture._columns(of_run(library, "demo"))  # pyright: ignore[reportPrivateUsage]
    places = lineage_picture._place(columns, number)  # pyright: ignore[reportPrivateUsage]
    assert len(places) == len(set(places.values())) == 1 + 2 * number
    for _, column in columns:
        tops = [places[node.node_id][1] for node in column]
        assert all(low - high > 0.6 for high, low in pairwise(tops))


def test_a_picture_of_another_kind_is_refused(grown: SqlLibrary, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ends in \.svg or \.png"):
        lineage_picture.draw(of_run(grown, "demo"), tmp_path / "lineage.jpg")


def test_the_command_prints_a_tree_and_draws(
    grown: SqlLibrary, library_url: str, artifacts_url: str, tmp_path: Path
) -> None:
    where = ["--library", library_url, "--artifacts", artifacts_url, "lineage"]
    svg = tmp_path / "lineage.svg"
    done = CliRunner().invoke(app, [*where, "demo", "--svg", str(svg)])
    assert done.exit_code == 0, done.output
    assert svg.is_file()
    for said in ("run demo: 2 of 3 kept", "[bold]", "(as above)", "endorsed with crucible a"):
        assert said in done.stdout, said
    as_json = CliRunner().invoke(app, [*where, "demo", "--json"])
    assert Lineage.model_validate_json(as_json.stdout) == of_run(grown, "demo")
    for arguments, said in (
        (["nobody"], "no run or kernel or blueprint has an id"),
        (["demo", "--svg", str(tmp_path / "x.png")], "expected a name that ends in .svg"),
        (["demo", "--png", str(tmp_path / "no" / "x.png")], "cannot be written"),
    ):
        refused = CliRunner().invoke(app, [*where, *arguments])
        assert (refused.exit_code, said in refused.stderr) == (2, True), refused.stderr
