"""A run folder with checkpoints is continued or refused, never started again in silence."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fast_electra.files import file_hash, write_json
from fast_electra.settings import UserError
from fast_electra.training import checkpoint
from fast_electra.training.engines import Ranks

RANKS = Ranks(0, 2, torch.device("cpu"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two whole checkpoints, as `save` leaves them."""
    for update in (3, 6):
        whole = tmp_path / checkpoint.name(update)
        whole.mkdir()
        (whole / "state.pt").write_bytes(b"weights" * 100)
        files = {"state.pt": [700, file_hash(whole / "state.pt")]}
        write_json(whole / checkpoint.COMPLETE, {"update": update, "ranks": 2, "files": files})
    (tmp_path / "latest").write_text(checkpoint.name(6) + "\n")
    return tmp_path


def test_newest_is_what_latest_names(folder: Path) -> None:
    assert checkpoint.newest(folder, RANKS) == folder / checkpoint.name(6)
    (folder / "latest").write_text(checkpoint.name(3))
    assert checkpoint.newest(folder, RANKS) == folder / checkpoint.name(3)
    assert checkpoint.newest(folder / "none", RANKS) is None


@pytest.mark.parametrize("content", ["", "update-00000009\n", "\xff garbage"])
def test_broken_latest_is_refused(folder: Path, content: str) -> None:
    (folder / "latest").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"latest names .* which is not there; write the name of a complete one"):
        checkpoint.newest(folder, RANKS)


def test_missing_latest_is_refused(folder: Path) -> None:
    (folder / "latest").unlink()
    with pytest.raises(UserError, match=r"latest is missing beside checkpoints.*update-00000003, update-00000006"):
        checkpoint.newest(folder, RANKS)


def test_latest_without_checkpoints_is_refused(folder: Path) -> None:
    for path in folder.glob("update-*"):
        path.rename(path.with_name(f"gone-{path.name}"))
    with pytest.raises(UserError, match="there is none"):
        checkpoint.newest(folder, RANKS)


def test_damage_is_found(folder: Path) -> None:
    state = folder / checkpoint.name(6) / "state.pt"
    whole = state.read_bytes()
    for damaged in (whole[:-1], b"W" + whole[1:], b""):
        state.write_bytes(damaged)
        with pytest.raises(UserError, match=r"state\.pt (was altered|has (0|699) bytes where the manifest says 700)"):
            checkpoint.newest(folder, RANKS)
    state.unlink()
    with pytest.raises(UserError, match=r"state.pt is missing"):
        checkpoint.newest(folder, RANKS)


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_unfinished_checkpoint_is_refused(folder: Path, content: str | None) -> None:
    complete = folder / checkpoint.name(6) / checkpoint.COMPLETE
    complete.unlink()
    if content is not None:
        complete.write_text(content)
    with pytest.raises(UserError, match="never finished"):
        checkpoint.newest(folder, RANKS)


@pytest.mark.parametrize("key", ["update", "ranks", "files"])
@pytest.mark.parametrize("odd", ["gone", None, "2", [1], {"state.pt": 700}, {"state.pt": ["700", "a"]}, -1.5], ids=str)
@pytest.mark.parametrize("rank", [0, 1])
def test_an_odd_description_is_refused(folder: Path, key: str, odd: Any, rank: int) -> None:
    complete = folder / checkpoint.name(6) / checkpoint.COMPLETE
    description = json.loads(complete.read_text()) | {key: odd}
    if odd == "gone":
        del description[key]
    complete.write_text(json.dumps(description))
    with pytest.raises(UserError, match=rf"^{complete} cannot be read .*; write the name of a complete one") as caught:
        checkpoint.newest(folder, Ranks(rank, 2, torch.device("cpu")))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["latest", "update-00000006", "update-00000006/complete.json"])
def test_a_folder_for_a_file_and_a_file_for_a_folder_are_refused(folder: Path, name: str) -> None:
    path = folder / name
    if path.is_dir():
        path.rename(folder / "gone")
        path.touch()
    else:
        path.unlink()
        path.mkdir()
    with pytest.raises(UserError, match=rf"^{path}.* cannot be read .*; write the name of a complete one") as caught:
        checkpoint.newest(folder, RANKS)
    assert "\n" not in str(caught.value)


def test_another_number_of_processes_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"written by 2 processes and this run has 4: .*--num_gpus 2"):
        checkpoint.newest(folder, Ranks(0, 4, torch.device("cpu")))


def test_pruning_keeps_what_was_just_written(folder: Path) -> None:
    """Also where `latest` had been set back to an earlier checkpoint and the run went on from there."""

    def left() -> list[str]:
        return sorted(path.name for path in folder.glob("update-*"))

    checkpoint.prune(folder, checkpoint.name(6), keep=2)
    assert left() == [checkpoint.name(3), checkpoint.name(6)]
    (folder / checkpoint.name(4)).mkdir()
    checkpoint.prune(folder, checkpoint.name(4), keep=1)
    assert left() == [checkpoint.name(4)]
