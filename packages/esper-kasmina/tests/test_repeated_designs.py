"""Several blocks in a row in one kernel compute what as many blocks one after another do."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import pytest
import torch
from kasmina_factory import ROW_NAMES, wake

from esper.contracts import BlueprintIR, KernelSignature, repeat
from esper.kasmina import build_block, builtin_blueprints, initialise_block, probe_shape


@pytest.mark.parametrize(
    "ir",
    [ir for ir in builtin_blueprints() if not ir.widens and ir.name not in ROW_NAMES],
    ids=lambda ir: ir.name,
)
@pytest.mark.parametrize("times", [2, 3])
def test_a_repeated_design_is_a_residual_chain(ir: BlueprintIR, times: int) -> None:
    signature = KernelSignature(kind=ir.kind, features=8)
    whole = build_block(repeat(ir, times), signature)
    initialise_block(whole, torch.Generator().manual_seed(1))
    x = torch.randn(probe_shape(signature), generator=torch.Generator().manual_seed(2))
    assert torch.equal(whole(x), torch.zeros_like(x))  # the identity at birth
    with torch.no_grad():
        wake(whole)
    h = x
    for number in range(times):
        block = build_block(ir, signature)
        prefix = f"node_b{number}_"
        block.load_state_dict(
            {
                name.replace(prefix, "node_"): value
                for name, value in whole.state_dict().items()
                if name.startswith(prefix)
            }
        )
        h = h + block(h)
    assert not torch.allclose(h, x)
    torch.testing.assert_close(x + whole(x), h)
