"""Law 12, the seed layer's part: equal seeds and commands give equal weights, events and health."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import pytest
from kasmina_beds import ALL_HOSTS, bed_of
from kasmina_factory import TO_FOSSILIZED, admit, order
from kasmina_hosts import digest, life

from esper.contracts import HealthSignal


def whole_life(name: str) -> tuple[str, list[HealthSignal]]:
    host, bed, optimizer = bed_of(name, sample_every_steps=2)
    site = len(bed.sites) - 1 if host.targets else 0
    kernel_id = admit(bed, site=site)

    def command(step: int) -> None:
        if step % 3 == 0 and step // 3 < len(TO_FOSSILIZED):
            order(bed, TO_FOSSILIZED[step // 3], kernel_id, (site, 0))

    losses = life(host, bed.model, optimizer, steps=24, before=command)
    return digest(bed.model, optimizer, losses), list(bed.end_epoch(0))


@pytest.mark.parametrize("name", ALL_HOSTS)
def test_two_lives_of_one_seed_are_one(name: str) -> None:
    assert whole_life(name) == whole_life(name)
