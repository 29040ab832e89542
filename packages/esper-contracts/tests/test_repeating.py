"""Designs of several blocks in a row."""

import pytest

from esper.contracts import BlueprintError, BlueprintIR, OperatorNode, SiteKind, repeat

BLOCK = BlueprintIR(
    name="block",
    kind=SiteKind.FEATURES,
    nodes=(
        OperatorNode(name="up", op="linear", inputs=("input",), params={"out": "2*D"}),
        OperatorNode(name="act", op="relu", inputs=("up",)),
        OperatorNode(
            name="down", op="linear", inputs=("act",), params={"out": "D", "init": "zeros"}
        ),
    ),
)


def test_each_block_reads_what_those_before_it_made() -> None:
    nodes = {node.name: (node.op, node.inputs) for node in repeat(BLOCK, 3).nodes}
    assert nodes["b0_up"] == ("linear", ("input",))
    assert nodes["h0"] == ("add", ("input", "b0_down"))
    assert nodes["b1_up"] == ("linear", ("h0",))
    assert nodes["sum1"] == ("add", ("b0_down", "b1_down"))
    assert nodes["h1"] == ("add", ("input", "sum1"))
    assert nodes["b2_up"] == ("linear", ("h1",))
    assert repeat(BLOCK, 3).nodes[-1].name == "sum2"
    assert len(nodes) == 3 * 3 + 2 * 2


def test_branches_born_alike_are_so_within_each_block() -> None:
    like = OperatorNode(
        name="other", op="linear", inputs=("input",), params={"out": "2*D"}, like="up"
    )
    twice = repeat(BLOCK.model_copy(update={"nodes": (BLOCK.nodes[0], like)}), 2)
    assert {n.name: n.like for n in twice.nodes if n.like} == {
        "b0_other": "b0_up",
        "b1_other": "b1_up",
    }


def test_once_is_the_design_itself() -> None:
    assert repeat(BLOCK, 1) is BLOCK


@pytest.mark.parametrize("times", [0, -1])
def test_less_than_once_is_refused(times: int) -> None:
    with pytest.raises(BlueprintError, match="expected at least 1"):
        repeat(BLOCK, times)


def test_more_than_a_design_can_hold_is_refused() -> None:
    assert len(repeat(BLOCK, 13).nodes) == 63
    with pytest.raises(
        BlueprintError, match="14 times 'block' has 68 nodes; a design has at most 64"
    ):
        repeat(BLOCK, 14)


def test_equal_designs_repeated_equally_are_one_design() -> None:
    assert repeat(BLOCK, 2).content_hash() == repeat(BLOCK.model_copy(), 2).content_hash()
    assert repeat(BLOCK, 2).content_hash() != repeat(BLOCK, 3).content_hash()


def test_what_widens_a_layer_cannot_be_put_in_a_row() -> None:
    wider = BLOCK.model_copy(update={"name": "wider", "widens": True})
    assert repeat(wider, 1) is wider
    with pytest.raises(
        BlueprintError, match="'wider' widens a layer, and what is wide cannot be put"
    ):
        repeat(wider, 2)
