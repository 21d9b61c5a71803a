"""A save is all or nothing, on the disk, and the same for all ranks; death at any point of it loses no checkpoint."""

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import saves
import torch
from conftest import Corpus
from ranks import Pool
from small import Record

from fast_electra.training import checkpoint


@pytest.mark.parametrize(
    ("function", "world"),
    [
        pytest.param(saves.poisoned, 1, marks=pytest.mark.drill("code in a file that others send")),
        pytest.param(saves.fails_together, 2, marks=pytest.mark.drill("full disk, or limit on the size of files")),
        pytest.param(saves.synced, 1, marks=pytest.mark.drill("power cut at an operation of a save")),
        pytest.param(saves.exported_again, 1, marks=pytest.mark.drill("damaged file")),
        pytest.param(saves.goes_on_from_an_older_one, 2, marks=pytest.mark.drill("damaged file")),
        pytest.param(saves.complete, 2, marks=pytest.mark.drill("damaged file")),
        pytest.param(saves.config_changed, 1, marks=pytest.mark.drill("damaged file")),
    ],
)
def test_on_real_ranks(function: Any, world: int, pools: dict[int, Pool], tiny_corpus: Corpus, tmp_path: Path) -> None:
    """What is asserted is in each function."""
    pools[world].run(function, tiny_corpus.shards.parent, tmp_path)


def written(folder: Path, update: int) -> Path:
    """What DeepSpeed would have written."""
    partial = folder / f"partial-{checkpoint.name(update)}"
    partial.mkdir(parents=True)
    for name in ("model.pt", "optimizer.pt"):
        torch.save({"update": update, "weights": torch.full((100,), float(update))}, partial / name)
    return partial


def put(partial: Path, update: int) -> None:
    checkpoint._put_in_place(partial, checkpoint.Complete(update=update, ranks=1, files={}), keep=1)


def killed_at(point: int, folder: Path, synced: Path) -> bool:
    """Put update 6 in place in a process that is killed before its file operation number `point`, if it gets there.

    The file `synced` gets the inodes of what is on the disk by then.
    """
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left, fsync, noted = point, os.fsync, synced.open("a", buffering=1)

    def notes(descriptor: int) -> None:
        fsync(descriptor)
        noted.write(f"{os.fstat(descriptor).st_ino}\n")

    os.fsync = notes

    def before_each(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir") and str(folder) in str(arguments[0]):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(before_each)
    put(folder / f"partial-{checkpoint.name(6)}", 6)
    os._exit(0)


def lose_power(folder: Path, synced: Path) -> None:
    """Empty the files that are not on the disk, as some file systems do: a name can be there before the content."""
    kept = synced.read_text().split()
    for path in folder.rglob("*"):
        if path.is_file() and str(path.stat().st_ino) not in kept:
            os.truncate(path, 0)


@pytest.mark.parametrize(
    "power",
    [
        pytest.param(True, marks=pytest.mark.drill("SIGKILL at an operation of a save")),
        pytest.param(False, marks=pytest.mark.drill("power cut at an operation of a save")),
    ],
)
def test_killed_before_every_file_operation_of_a_save(
    power: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], record_property: Record
) -> None:
    """One checkpoint is kept: the old or the new one is whole, and what was left goes at the next start."""
    taken = []
    for point in range(200):
        folder = tmp_path / f"{point}" / "checkpoints"
        put(written(folder, 3), 3)
        synced = tmp_path / f"{point}" / "synced"
        synced.write_text("".join(f"{path.stat().st_ino}\n" for path in folder.rglob("*")))
        written(folder, 6)
        died = killed_at(point, folder, synced)
        if not power:
            lose_power(folder, synced)
        chosen = checkpoint.choose(folder, 1)
        assert chosen is not None and not capsys.readouterr().out
        taken.append(checkpoint.check(chosen).update)
        left = {path.name for path in folder.iterdir()} - {checkpoint.name(3), checkpoint.name(6)}
        assert left == {"latest"}
        shutil.rmtree(folder.parent)
        if not died:
            break
    record_property("tried", point)
    assert point > 20 and taken == sorted(taken) and set(taken) == {3, 6}
