"""Seeds under what people train with: compiled, mixed precision, accumulation, checkpointing, …"""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from kasmina_factory import (
    PATHS,
    QUICK,
    TO_FOSSILIZED,
    TO_TRAINING,
    admit,
    batch_for,
    cnn,
    grow,
    mlp,
    order,
    state_bits,
    train,
    wake,
)
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from esper.contracts import SeedState
from esper.kasmina import Bed, StageLengths, wrap

S = SeedState


@pytest.fixture
def compiler() -> Iterator[CompileCounterWithBackend]:
    """Counts the graphs that `torch.compile` makes; they run without code generation."""
    torch.compiler.reset()
    yield CompileCounterWithBackend("aot_eager")
    torch.compiler.reset()


def step(model: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, number: int) -> float:
    x, y = batch_for(mlp(), number)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def attached(model: nn.Module, lr: float = 0.01, **options: Any) -> tuple[Bed, torch.optim.SGD]:
    bed = wrap(model, stages=QUICK, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    bed.attach(optimizer)
    return bed, optimizer


def test_dormant_seeds_compile_to_the_one_graph_of_the_bare_host(
    compiler: CompileCounterWithBackend,
) -> None:
    plain, model = mlp().train(), mlp().train()
    bed, optimizer = attached(model, sample_every_steps=2)
    compiled = torch.compile(model, backend=compiler, fullgraph=True)
    losses = [step(compiled, optimizer, number) for number in range(6)]
    assert compiler.frame_count == 1
    num_operators = compiler.op_count
    bed.unwrap()
    torch.compiler.reset()
    bare = CompileCounterWithBackend("aot_eager")
    again = torch.compile(plain, backend=bare, fullgraph=True)
    sgd = torch.optim.SGD(plain.parameters(), lr=0.01, momentum=0.9)
    assert [step(again, sgd, number) for number in range(6)] == losses
    assert bare.op_count == num_operators
    assert state_bits(plain) == state_bits(model)


def test_a_change_of_structure_recompiles_once_and_a_ramp_never(
    compiler: CompileCounterWithBackend,
) -> None:
    model = mlp().train()
    bed, optimizer = attached(model, sample_every_steps=3)
    compiled = torch.compile(model, backend=compiler, fullgraph=True)
    kernel_id = admit(bed, change=wake)
    graphs: list[int] = []
    for state in (None, *TO_FOSSILIZED):
        if state is not None:
            order(bed, state, kernel_id)
        before = compiler.frame_count
        for number in range(4):
            step(compiled, optimizer, number)
        graphs.append(compiler.frame_count - before)
    # dormant, germinated, loading, training, grafting (and its ramp), stabilization (the kernel is
    # frozen), evaluating, fine-tuning (as while grafting), fossilized
    assert graphs == [1, 0, 0, 1, 1, 1, 0, 0, 0]
    x, _ = batch_for(model)
    assert torch.allclose(compiled(x), model(x), atol=1e-6)
    assert any("esper_seed" in name for name, _ in model.named_parameters())


def test_a_compiled_ramp_is_seen_in_the_output(compiler: CompileCounterWithBackend) -> None:
    model = mlp().eval()
    bed, optimizer = attached(model, lr=0.0)
    compiled = torch.compile(model, backend=compiler, fullgraph=True)
    x, _ = batch_for(model)
    outputs = [compiled(x).detach()]
    grow(bed, PATHS[S.GRAFTING], change=wake)
    for _ in range(QUICK.ramp_steps + 1):
        outputs.append(compiled(x).detach())
        assert torch.allclose(outputs[-1], model(x), atol=1e-6)
        optimizer.step()
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[1], outputs[2])
    assert not torch.allclose(outputs[2], outputs[3])
    order(bed, S.CULLED)
    assert torch.allclose(compiled(x), outputs[0], atol=1e-6)


def test_a_seed_learns_inside_a_compiled_host_what_it_learns_in_an_eager_one(
    compiler: CompileCounterWithBackend,
) -> None:
    finals: list[tuple[int, list[float]]] = []
    for compiling in (False, True):
        model = mlp().train()
        bed, optimizer = attached(model)
        run = torch.compile(model, backend=compiler, fullgraph=True) if compiling else model
        kernel_id = admit(bed)
        for state in TO_TRAINING:
            order(bed, state, kernel_id)
        for number in range(5):
            step(run, optimizer, number)
        block = bed.seed((0, 0)).block
        assert block is not None
        weights = [value for p in block.parameters() for value in p.flatten().tolist()]
        finals.append((bed.seed((0, 0)).steps_in_state, weights))
    assert finals[0][0] == finals[1][0] == 5
    assert finals[1][1] == pytest.approx(finals[0][1], abs=1e-5)


def test_each_call_of_a_compiled_layer_is_paired_with_its_own_gradient(
    compiler: CompileCounterWithBackend,
) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.tanh(self.layer(x)))

    finals: list[list[float]] = []
    for compiling in (False, True):
        model = Twice().train()
        bed, optimizer = attached(model, targets=["layer"])
        run = torch.compile(model, backend=compiler, fullgraph=True) if compiling else model
        grow(bed, TO_TRAINING)
        for number in range(4):
            step(run, optimizer, number)
        block = bed.seed((0, 0)).block
        assert block is not None
        finals.append([value for p in block.parameters() for value in p.flatten().tolist()])
    assert finals[1] == pytest.approx(finals[0], abs=1e-5)


def test_health_of_a_compiled_host_is_sampled_in_uncompiled_steps_when_asked(
    compiler: CompileCounterWithBackend,
) -> None:
    for sample_compiled, expected in ((False, 0), (True, 32)):
        torch.compiler.reset()
        model = mlp().train()
        bed, optimizer = attached(model, sample_every_steps=2, sample_compiled=sample_compiled)
        compiled = torch.compile(model, backend=compiler, fullgraph=True)
        for number in range(5):
            step(compiled, optimizer, number)
        bed.detach()
        assert bed.end_epoch(0)[0].num_rows == expected


def test_a_compiled_module_itself_is_refused_with_what_to_do() -> None:
    compiled: Any = torch.compile(mlp(), backend="eager")
    with pytest.raises(Exception, match="it is compiled; wrap the module inside it"):
        wrap(compiled)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [mlp, cnn])
def test_a_whole_life_under_autocast(make: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    model = make().train()
    bed = wrap(model, stages=QUICK, sample_every_steps=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    bed.attach(optimizer, scaler=scaler)

    def some_steps(_: SeedState) -> None:
        for number in range(4):
            x, y = batch_for(model, number)
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype):
                loss = nn.functional.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            assert bool(loss.detach().isfinite())

    grow(bed, TO_FOSSILIZED, change=wake, between=some_steps)
    assert bed.seeds()[0].state is S.FOSSILIZED
    assert all(p.dtype is torch.float32 for p in model.parameters())
    assert bed.end_epoch(0)[0].num_rows > 0


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_counts_for_nothing(fused: bool) -> None:
    model = mlp().train()
    bed = wrap(model, stages=QUICK)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    bed.attach(optimizer, scaler=scaler)
    grow(bed, PATHS[S.GRAFTING], change=wake)
    x, y = batch_for(model)
    scaler.scale(nn.functional.cross_entropy(model(x * 1e3), y)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert bed.step == 0
    assert bed.seeds()[0].alpha == 0.0
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert bed.step == 1


def test_gradients_accumulate_and_only_steps_of_the_optimizer_count() -> None:
    model = mlp().train()
    bed, optimizer = attached(model)
    grow(bed, TO_TRAINING)
    for _ in range(2):
        for micro in range(3):
            x, y = batch_for(model, micro)
            (nn.functional.cross_entropy(model(x), y) / 3).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert bed.step == 2
    assert bed.seeds()[0].is_ready_for_transition


class Checkpointed(nn.Module):
    """Recomputes its body in the backward pass."""

    def __init__(self, *, use_reentrant: bool | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.1))
        self.head = nn.Linear(8, 3)
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.use_reentrant is None:
            return self.head(self.body(h))
        h = checkpoint(self.body, h, use_reentrant=self.use_reentrant)
        assert isinstance(h, Tensor)
        return self.head(h)


def test_gradient_checkpointing_changes_nothing_of_a_seeds_life() -> None:
    finals: list[tuple[dict[str, bytes], list[float]]] = []
    for use_reentrant in (None, False, True):
        model = Checkpointed(use_reentrant=use_reentrant).train()
        bed = wrap(model, targets=["body.0"], stages=QUICK, sample_every_steps=2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        bed.attach(optimizer)
        torch.manual_seed(4)
        losses: list[float] = []

        def some_steps(
            _: SeedState,
            model: nn.Module = model,
            optimizer: torch.optim.Optimizer = optimizer,
            losses: list[float] = losses,
        ) -> None:
            losses += [step(model, optimizer, number) for number in range(4)]

        grow(bed, TO_FOSSILIZED, between=some_steps)
        finals.append((state_bits(model), losses))
    assert finals[0] == finals[1] == finals[2]


def test_functional_calls_use_the_given_weights_of_host_and_block() -> None:
    model = mlp().eval()
    bed, _ = attached(model)
    grow(bed, TO_FOSSILIZED, change=wake)
    x, _ = batch_for(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.equal(torch.func.functional_call(model, state, (x,)), model(x))
    for name in state:
        if "esper_seed" in name and name.endswith("weight"):
            state[name] = torch.zeros_like(state[name])
    assert not torch.equal(torch.func.functional_call(model, state, (x,)), model(x))


def test_per_sample_gradients_pass_through_a_block() -> None:
    model = mlp().eval()
    model[1] = nn.ReLU()
    bed, _ = attached(model)
    grow(bed, TO_FOSSILIZED, change=wake)
    x, y = batch_for(model)
    state = {name: value.detach() for name, value in model.named_parameters()}

    def loss_of(weights: dict[str, Tensor], sample: Tensor, label: Tensor) -> Tensor:
        output = torch.func.functional_call(model, weights, (sample.unsqueeze(0),))
        return nn.functional.cross_entropy(output, label.unsqueeze(0))

    each = torch.func.vmap(torch.func.grad(loss_of), in_dims=(None, 0, 0))(state, x, y)
    nn.functional.cross_entropy(model(x), y).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(each[name].mean(dim=0), parameter.grad, atol=1e-6)


def test_evaluation_and_no_grad_teach_a_seed_nothing() -> None:
    model = mlp()
    bed, optimizer = attached(model)
    grow(bed, TO_TRAINING)
    x, y = batch_for(model)
    model.eval()
    nn.functional.cross_entropy(model(x), y).backward()
    model.train()
    with torch.no_grad():
        model(x)
    with torch.inference_mode():
        model(x)
    optimizer.zero_grad()
    optimizer.step()
    assert bed.seed((0, 0)).steps_in_state == 0


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_may_be_cleared_either_way(set_to_none: bool) -> None:
    model = mlp().train()
    bed, optimizer = attached(model)

    def some_steps(_: SeedState) -> None:
        for number in range(4):
            x, y = batch_for(model, number)
            optimizer.zero_grad(set_to_none=set_to_none)
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()

    grow(bed, TO_FOSSILIZED, between=some_steps)
    assert bed.seeds()[0].state is S.FOSSILIZED


def test_channels_last_stays_channels_last() -> None:
    model = cnn().to(memory_format=torch.channels_last).eval()
    bed, _ = attached(model)
    grow(bed, TO_FOSSILIZED, change=wake)
    x = batch_for(model)[0].to(memory_format=torch.channels_last)
    assert model[0](x).is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(model(x), model(x.contiguous()), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_host_of_another_type_grows_blocks_of_that_type(dtype: torch.dtype) -> None:
    model = mlp().to(dtype).train()
    bed = wrap(model, stages=StageLengths(training_steps=1, ramp_steps=2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    bed.attach(optimizer)

    def some_steps(_: SeedState) -> None:
        for number in range(3):
            x, y = batch_for(model, number)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x.to(dtype)), y).backward()
            optimizer.step()

    grow(bed, TO_FOSSILIZED, between=some_steps)
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_a_host_that_never_needs_gradients_before_the_site_still_grows() -> None:
    model = mlp()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model[4].requires_grad_(True)
    bed, optimizer = attached(model)
    grow(bed, (S.GERMINATED, S.LOADING, S.GRAFTING), change=wake)
    before = bed.weights_sha256()
    train(model, optimizer, 3)
    grafted = [p for n, p in model.named_parameters() if "esper_seed" in n]
    assert all(p.grad is not None for p in grafted)
    assert bed.weights_sha256() != before
