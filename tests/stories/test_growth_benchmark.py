"""The benchmarks of growth in their short forms."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GROWN = ("default", "heuristic", "random")


def run(script: str, *options: str) -> str:
    command = [sys.executable, f"tests/benchmarks/{script}", "--processes", "1", *options]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def compete(out: Path) -> str:
    options = ("--problems", "plain", "--seeds", "1", "--share", "0.025", "--rates", "0.01")
    return run("growth", *options, "--out", str(out))


@pytest.mark.long
def test_every_arm_gets_the_same_flops_and_what_is_done_is_kept(tmp_path: Path) -> None:
    printed = compete(tmp_path)
    results = json.loads((tmp_path / "plain-0-0.01.json").read_text(encoding="utf-8"))
    assert set(results) > {
        *GROWN,
        "default's net from scratch",
        "small host",
        "static, width 128",
    }
    # The last step may go beyond the budget, which is short here: that of a large net is much of it.
    equal = [r["flops"] for arm, r in results.items() if not re.search("as many steps|static", arm)]
    assert max(equal) < 1.03 * min(equal)
    assert results["default's net from scratch"]["parameters"] == results["default"]["parameters"]
    assert results["… for as many steps"]["steps"] == results["default"]["steps"]
    assert all(f"| {arm} |" in printed for arm in results)
    assert "| default is better by |" in printed
    when = (tmp_path / "plain-0-0.01.json").stat().st_mtime_ns
    assert compete(tmp_path).partition("**")[2] == printed.partition("**")[2]
    assert (tmp_path / "plain-0-0.01.json").stat().st_mtime_ns == when


@pytest.mark.long
def test_growth_lands_where_a_host_is_too_narrow() -> None:
    printed = run("growth/bottlenecks.py", "--families", "MLP, LayerNorm", "--seeds", "1")
    found = re.search(r"\| 4 \| (\d) of 4 \| (\d) of 4 \|", printed)
    assert found is not None, printed
    by_gap, by_chance = (int(hits) for hits in found.groups())
    assert by_gap >= 3 > by_chance
