"""The run folder is made whole or not at all."""

from pathlib import Path

import pytest

from esper.contracts import ConfigError
from esper.tamiyo import RunConfig
from esper.tamiyo.folder import reopened_folder, run_folder, write_whole


def test_a_run_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    out = tmp_path / "all" / "runs"
    with pytest.raises(RuntimeError), run_folder(RunConfig(out=out)) as folder:  # noqa: PT012
        folder.write_text("events.jsonl", "x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    out.mkdir()
    with pytest.raises(RuntimeError), run_folder(RunConfig(out=out)):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == [out]
    with pytest.raises(RuntimeError), run_folder(RunConfig(out=out / "new")):  # noqa: PT012
        (out / "new" / "mine").write_text("")
        raise RuntimeError
    assert list(out.rglob("*")) == [out / "new", out / "new" / "mine"]


def test_a_run_that_fails_with_its_model_saved_says_where(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as told, run_folder(RunConfig(out=tmp_path)) as folder:  # noqa: PT012
        folder.write_text("model.safetensors", "x")
        folder.keep = True
        raise RuntimeError
    assert told.value.__notes__ == [f"what was trained before that is in {folder.final_path}"]
    assert (folder.final_path / "model.safetensors").is_file()


def test_a_run_that_is_kept_gets_its_name(tmp_path: Path) -> None:
    with run_folder(RunConfig(out=tmp_path)) as folder:
        folder.write_json("summary.json", {"a": 1})
        folder.keep = True
    assert [path.name for path in tmp_path.iterdir()] == [folder.run_id]
    assert (folder.final_path / "summary.json").read_text() == '{\n  "a": 1\n}\n'


def test_a_run_that_died_before_it_got_its_name_can_be_gone_on_with(tmp_path: Path) -> None:
    with run_folder(RunConfig(out=tmp_path)) as folder:
        folder.write_json("summary.json", {"interrupted": False})
        (folder.path / "checkpoints").mkdir()
        folder.keep = True
    hidden = folder.path
    assert (folder.final_path / "checkpoints").is_dir()
    folder.final_path.rename(hidden)
    with reopened_folder(hidden) as again:
        assert again.path == hidden
        again.is_complete = True
    assert [path.name for path in tmp_path.rglob("*")] == [folder.run_id, "summary.json"]
    with pytest.raises(ConfigError, match="is complete"), reopened_folder(folder.final_path):
        pass


def test_a_complete_run_gets_its_name_and_is_rid_of_its_checkpoints(tmp_path: Path) -> None:
    with run_folder(RunConfig(out=tmp_path)) as folder:
        folder.write_json("summary.json", {"interrupted": False})
        folder.keep = True
    folder.final_path.rename(folder.path)
    with pytest.raises(ConfigError, match="is complete"), reopened_folder(folder.path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [folder.run_id]
    (folder.final_path / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="is complete"), reopened_folder(folder.final_path):
        pass
    assert [path.name for path in folder.final_path.iterdir()] == ["summary.json"]


def test_an_output_folder_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match=r"cannot be written .*choose another with --out"),
        run_folder(RunConfig(out=tmp_path / "file")),
    ):
        pass


def test_a_full_disk_leaves_the_file_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    write_whole(tmp_path / "summary.json", "old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "summary.json", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    assert (tmp_path / "summary.json").read_text() == "old"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_summary_without_a_checkpoint_is_explained(tmp_path: Path, content: str) -> None:
    (tmp_path / "summary.json").write_text(content)
    with (
        pytest.raises(ConfigError, match=r"was damaged .* no checkpoint left .* train --config"),
        reopened_folder(tmp_path),
    ):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_summary_with_a_checkpoint_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "summary.json").write_text(content)
    (tmp_path / "checkpoints").mkdir()
    with reopened_folder(tmp_path) as folder:
        assert folder.path == tmp_path


def test_a_complete_run_without_its_report_is_told_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"interrupted": false}')
    with (
        pytest.raises(ConfigError, match=r"is complete; .*; tamiyo report .* draws it"),
        reopened_folder(tmp_path),
    ):
        pass
