"""Law 10, the seed layer's part: the commands and their events tell a life well enough to relive it."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import torch
from kasmina_factory import (
    QUICK,
    TO_FINE_TUNING,
    TO_FOSSILIZED,
    Crucible,
    admit,
    blueprint,
    mlp,
    order,
    train,
)

from esper.contracts import KasminaCommand, SeedEvent, SeedState
from esper.kasmina import Bed, wrap


def fresh() -> tuple[Bed, torch.optim.Optimizer]:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    bed = wrap(model, stages=QUICK)
    bed.attach(optimizer)
    for site in (0, 1):
        admit(bed, site=site)
    return bed, optimizer


def test_replaying_the_events_ends_in_the_same_weights() -> None:
    bed, optimizer = fresh()
    record: list[SeedEvent] = []
    paths = (((0, 0), TO_FOSSILIZED), ((1, 0), (*TO_FINE_TUNING, SeedState.CULLED)))
    for seed_id, path in paths:
        kernel_id = admit(bed, site=seed_id[0])
        for state in path:
            event = order(bed, state, kernel_id, seed_id)
            assert event is not None
            record.append(event)
            train(bed.model, optimizer, 3, first=bed.step)
    assert [event.to_state for event in record] == [
        *TO_FOSSILIZED,
        *TO_FINE_TUNING,
        SeedState.CULLED,
    ]

    again, other = fresh()
    for index, event in enumerate(record):
        following = record[index + 1].step if index + 1 < len(record) else bed.step
        told = SeedEvent.model_validate_json(event.model_dump_json())
        replayed = again.execute(
            KasminaCommand(
                command_id=told.command_id,
                seed_id=told.seed_id,
                target=told.to_state,
                kernel_id=told.kernel_id if told.to_state is SeedState.GERMINATED else None,
                epoch=told.epoch,
                reason=told.reason,
            )
        )
        assert replayed is not None
        assert replayed.model_dump(exclude={"at"}) == event.model_dump(exclude={"at"})
        train(again.model, other, following - again.step, first=again.step)
    assert again.weights_sha256() == bed.weights_sha256()
    assert again.seeds() == bed.seeds()


def test_an_event_names_seed_site_states_kernel_step_and_reason() -> None:
    bed, optimizer = fresh()
    kernel, _ = Crucible().kernel(blueprint("low_rank"), bed.sites[1].signature)
    train(bed.model, optimizer, 2)
    kernel_id = admit(bed, "low_rank", site=1)
    event = order(bed, SeedState.GERMINATED, kernel_id, (1, 0))
    assert event is not None
    assert kernel_id == kernel.kernel_id == event.kernel_id
    assert (event.seed_id, event.site, event.step) == ((1, 0), "2", 2)
    assert (event.from_state, event.to_state) == (SeedState.DORMANT, SeedState.GERMINATED)
    assert event.reason == "a test says so"
