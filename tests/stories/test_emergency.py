"""A block that makes the loss not finite: the run goes back to before it, once, and locks its place."""

from pathlib import Path

from esper.contracts import SeedEvent, SeedState, read_chain
from esper.testkit.runs import Train

POISONED = """
from torch import nn

class Poisoned(nn.Module):
    \"\"\"Whatever is grafted first makes its answers NaN once it is blended in.\"\"\"

    def __init__(self, task):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(task.num_features, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(),
            nn.Linear(6, task.num_classes),
        )
        self.first = []

    def forward(self, x):
        grafts = [module for module in self.modules() if type(module).__name__ == "Graft"]
        if grafts and not self.first:
            self.first.append([grafts[0]])
        answers = self.body(x)
        if grafts and self.first and any(graft is self.first[0][0] for graft in grafts):
            return answers * float("nan")
        return answers

def build(task):
    return Poisoned(task)
"""


def test_a_block_that_spoils_the_loss_is_rolled_back_by_itself(
    train: Train, tmp_path: Path
) -> None:
    (tmp_path / "poisoned.py").write_text(POISONED)
    run = train("--host", "poisoned:build", "--epochs", "40", "--no-twin", cwd=tmp_path)
    assert run.exit_code == 0, run.stderr
    events = [
        SeedEvent.model_validate(event.data)
        for event in read_chain(run.folder / "events.jsonl")
        if event.kind == "transition"
    ]
    (rolled_back,) = (e for e in events if e.to_state is SeedState.ROLLED_BACK)
    assert "cull" in run.stdout
    assert rolled_back.reason in run.stdout
    later = [e for e in events if e.epoch >= rolled_back.epoch and e is not rolled_back]
    assert later, "nothing grew after it"
    assert rolled_back.seed_id not in {e.seed_id for e in later}
    assert run.summary["grown"]["loss"] is not None
    outcomes = [a["outcome"] for a in run.summary["adaptations"]]
    assert outcomes.count("ROLLED_BACK") == 1
    assert "FOSSILIZED" in outcomes
