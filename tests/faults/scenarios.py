"""All scenarios by name, and what each promises; `test_faults` plays them short, `__main__` long."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from between_processes import backlog, full_disk, lost_group, poisoned_rate, storm
from in_process import cancellations, concurrent_publishes, lost_answers
from ledger import Ledger
from schedule import Wait
from stage import Size

type Scenario = Callable[[Size, Path, Wait], Ledger]

SCENARIOS: Mapping[str, Scenario] = MappingProxyType(
    {
        "storm": storm,
        "lost-group": lost_group,
        "full-disk": full_disk,
        "poison": poisoned_rate,
        "cancellations": cancellations,
        "concurrent-publishes": concurrent_publishes,
        "lost-answers": lost_answers,
        "backlog": backlog,
    }
)
