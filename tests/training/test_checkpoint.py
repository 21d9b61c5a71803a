"""A run folder with checkpoints is continued or refused, never started again in silence."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small import ALONE, Record, every_flipped_bit

from fast_electra.files import file_hash, read_json, write_sealed
from fast_electra.jobs import session
from fast_electra.settings import UserError
from fast_electra.training import checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two whole checkpoints, as `save` leaves them."""
    folder = tmp_path / "run" / "checkpoints"
    for update in (3, 6):
        whole = folder / checkpoint.name(update)
        whole.mkdir(parents=True)
        torch.save({"update": update, "weights": torch.ones(200)}, whole / "state.pt")
        describe(whole)
    (folder / "latest").write_text(checkpoint.name(6) + "\n")
    return folder


def describe(whole: Path, **changes: Any) -> None:
    """Write complete.json again, as anyone who changes the other files can."""
    files = {file.name: [file.stat().st_size, file_hash(file)] for file in whole.glob("*.pt")}
    update = int(whole.name.removeprefix("update-"))
    write_sealed(whole / checkpoint.COMPLETE, {"update": update, "ranks": 2, "files": files} | changes)


def passed_over(folder: Path, capsys: pytest.CaptureFixture[str], wrong: str) -> None:
    """The older checkpoint is taken, and one line says why. Without the older one, the line is the error."""
    assert checkpoint.choose(folder, 2) == folder / checkpoint.name(3)
    (line,) = capsys.readouterr().out.splitlines()
    assert re.match(rf"note: .*{wrong}.*; the newest whole checkpoint is .*{checkpoint.name(3)}$", line), line
    (folder / checkpoint.name(3)).rename(folder / "gone")
    with pytest.raises(UserError, match=rf"{wrong}.* no whole checkpoint is left .*name another run folder$") as caught:
        checkpoint.choose(folder, 2)
    assert "\n" not in str(caught.value)


def test_newest_is_what_latest_names(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checkpoint.choose(folder, 2) == folder / checkpoint.name(6)
    (folder / "latest").write_text(checkpoint.name(3))
    assert checkpoint.choose(folder, 2) == folder / checkpoint.name(3)
    assert checkpoint.newest(folder / "none", ALONE) is None
    assert capsys.readouterr().out == ""


@pytest.mark.drill("damaged file")
@pytest.mark.parametrize("content", ["", "update-00000009\n", "\xff garbage", None])
def test_without_latest_the_newest_whole_one_is_taken(
    folder: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a power cut: the name was lost, or never written."""
    if content is None:
        (folder / "latest").unlink()
    else:
        (folder / "latest").write_text(content, encoding="latin-1")
    assert checkpoint.choose(folder, 2) == folder / checkpoint.name(6)
    (line,) = capsys.readouterr().out.splitlines()
    assert re.match(rf"note: {folder}/latest (names .* which is not there|cannot be read \(No such file)", line), line


def test_latest_without_checkpoints_is_refused(folder: Path) -> None:
    for path in folder.glob("update-*"):
        path.rename(path.with_name(f"gone-{path.name}"))
    with pytest.raises(
        UserError, match="latest names 'update-00000006', which is not there; no whole checkpoint is left"
    ):
        checkpoint.choose(folder, 2)


@pytest.mark.drill("damaged file")
@pytest.mark.parametrize("size", [-1, 0, None, 1])
def test_damage_is_found(folder: Path, size: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    """Cut, empty, gone, or with another first byte."""
    state = folder / checkpoint.name(6) / "state.pt"
    whole = state.read_bytes()
    state.unlink()
    if size is not None:
        state.write_bytes(whole[:size] if size < 1 else b"W" + whole[1:])
    passed_over(folder, capsys, r"state\.pt (was altered|is missing|has [0-9,]+ bytes where the manifest says)")


@pytest.mark.drill("damaged file")
@pytest.mark.parametrize("content", [b"", b"weights" * 100, b"PK\x03\x04" + bytes(900), b"\x80\x02}q\x00.", b"[]"])
def test_wrong_content_with_the_right_hash_is_found(
    folder: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = folder / checkpoint.name(6)
    (whole / "state.pt").write_bytes(content)
    describe(whole)
    passed_over(folder, capsys, r"state\.pt cannot be loaded \(.+\); it is passed over")


@pytest.mark.drill("damaged file")
@pytest.mark.parametrize("content", [None, "{", "[]", "{}", "[" * 100_000])
def test_unfinished_checkpoint_is_refused(
    folder: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    complete = folder / checkpoint.name(6) / checkpoint.COMPLETE
    complete.unlink()
    if content is not None:
        complete.write_text(content)
    passed_over(folder, capsys, rf"{complete} .*never finished, or is damaged")


@pytest.mark.drill("damaged file")
@pytest.mark.parametrize("key", ["update", "ranks", "files"])
@pytest.mark.parametrize(
    "odd", ["gone", None, "2", [1], {"state.pt": 700}, {"state.pt": ["700", "a"]}, {}, -1.5], ids=str
)
def test_an_odd_description_is_refused(folder: Path, key: str, odd: Any, capsys: pytest.CaptureFixture[str]) -> None:
    complete = folder / checkpoint.name(6) / checkpoint.COMPLETE
    description = json.loads(complete.read_text()) | {key: odd}
    del description["checksum"]  # as in a checkpoint of an older version
    if odd == "gone":
        del description[key]
    complete.write_text(json.dumps(description))
    passed_over(folder, capsys, rf"{complete} (cannot be read|names no files)")


@pytest.mark.drill("flipped bit of a description")
def test_every_flipped_bit_of_a_description_is_found(folder: Path, record_property: Record) -> None:
    whole = folder / checkpoint.name(6)
    record_property("tried", every_flipped_bit(whole / checkpoint.COMPLETE, lambda: checkpoint._complete(whole)))


@pytest.mark.drill("flipped bit of a description")
def test_every_flipped_bit_of_a_runs_config_is_found(tmp_path: Path, record_property: Record) -> None:
    path, settled = tmp_path / "config.json", {"fast_electra": {"seed": 0, "run": "é"}, "deepspeed": {"train": 8.5}}

    def read() -> Any:
        session.check_same_run(path, settled)
        return read_json(path)

    write_sealed(path, settled)
    record_property("tried", every_flipped_bit(path, read))


def test_a_renamed_checkpoint_is_not_taken_for_another(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    describe(folder / checkpoint.name(6), update=3)
    passed_over(folder, capsys, "describes update 3: the folder was renamed")


def test_a_checkpoint_of_an_older_version_is_taken(folder: Path) -> None:
    complete = folder / checkpoint.name(6) / checkpoint.COMPLETE
    description = json.loads(complete.read_text())
    del description["checksum"]
    complete.write_text(json.dumps(description))
    assert checkpoint.choose(folder, 2) == complete.parent


@pytest.mark.drill("damaged file")
@pytest.mark.parametrize("name", ["latest", "update-00000006", "update-00000006/complete.json"])
def test_a_folder_for_a_file_and_a_file_for_a_folder(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / name
    if path.is_dir():
        path.rename(folder / "gone-too")
        path.touch()
    else:
        path.unlink()
        path.mkdir()
    taken = checkpoint.choose(folder, 2)
    assert taken == folder / checkpoint.name(6 if name == "latest" else 3)
    (line,) = capsys.readouterr().out.splitlines()
    assert str(path) in line and "cannot be read" in line


def test_what_a_killed_run_left_goes(folder: Path) -> None:
    run, gone = folder.parent, [".config.json.999999999", ".latest.999999999.partial", ".status.json.999999998.partial"]
    for left in gone:
        (run / left).touch()
        (folder / left).touch()
    (folder / "partial-update-00000009").mkdir()
    (folder / "partial-gone-update-00000001").mkdir()
    kept = [f".report.html.{os.getpid()}.partial", ".hidden", ".notes.2024.txt"]
    for stays in kept:
        (run / stays).touch()
    checkpoint.choose(folder, 2)
    assert {path.name for path in folder.iterdir()} == {"latest", checkpoint.name(3), checkpoint.name(6)}
    assert {path.name for path in run.iterdir() if path.name.startswith(".")} == set(kept)


def test_another_number_of_processes_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"written by 2 processes and this run has 4: .*--num_gpus 2"):
        checkpoint.choose(folder, 4)


def test_pruning_keeps_what_was_just_written(folder: Path) -> None:
    """Also where `latest` had been set back to an earlier checkpoint and the run went on from there."""

    def left() -> list[str]:
        return sorted(path.name for path in folder.glob("update-*"))

    checkpoint.prune(folder, checkpoint.name(6), keep=2)
    assert left() == [checkpoint.name(3), checkpoint.name(6)]
    (folder / checkpoint.name(4)).mkdir()
    checkpoint.prune(folder, checkpoint.name(4), keep=1)
    assert left() == [checkpoint.name(4)]
