"""The run folder is made whole or not at all."""

from pathlib import Path

import pytest

from esper.contracts import ConfigError
from esper.tamiyo import RunConfig
from esper.tamiyo.folder import run_folder


def test_a_run_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), run_folder(RunConfig(out=tmp_path / "runs")) as folder:  # noqa: PT012
        folder.write_text("events.jsonl", "x")
        raise RuntimeError
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_run_that_is_kept_gets_its_name(tmp_path: Path) -> None:
    with run_folder(RunConfig(out=tmp_path)) as folder:
        folder.write_json("summary.json", {"a": 1})
        folder.keep = True
    assert [path.name for path in tmp_path.iterdir()] == [folder.run_id]
    assert (folder.final_path / "summary.json").read_text() == '{\n  "a": 1\n}\n'


def test_an_output_folder_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match=r"cannot be written .*choose another with --out"),
        run_folder(RunConfig(out=tmp_path / "file")),
    ):
        pass
