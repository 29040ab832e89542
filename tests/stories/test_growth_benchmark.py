"""The benchmark of growth in its short form: every arm runs, and an interrupted command goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ARMS = ("grown", "random", "output side", "scratch", "scratch, zeros", "small host")


def run(out: Path) -> str:
    command = [sys.executable, "tests/benchmarks/growth", "--problems", "conv", "--seeds", "1"]
    command += ["--share", "0.05", "--processes", "1", "--rates", "0.01", "--out", str(out)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.long
def test_every_arm_gets_the_same_flops_and_what_is_done_is_kept(tmp_path: Path) -> None:
    printed = run(tmp_path)
    results = json.loads((tmp_path / "conv-0-0.01.json").read_text(encoding="utf-8"))
    assert set(results) == set(ARMS)
    budgets = [result["flops"] for result in results.values()]
    assert max(budgets) < 1.03 * min(budgets)  # the last step may go beyond it
    assert results["scratch"]["parameters"] == results["grown"]["parameters"]
    assert all(f"| {arm} |" in printed for arm in ARMS)
    when = (tmp_path / "conv-0-0.01.json").stat().st_mtime_ns
    assert run(tmp_path).partition("**")[2] == printed.partition("**")[2]
    assert (tmp_path / "conv-0-0.01.json").stat().st_mtime_ns == when
