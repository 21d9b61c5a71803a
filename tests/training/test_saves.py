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

from fast_electra.training import checkpoint


@pytest.mark.parametrize(
    ("function", "world"),
    [
        (saves.poisoned, 1),
        (saves.fails_together, 2),
        (saves.synced, 1),
        (saves.exported_again, 1),
        (saves.goes_on_from_an_older_one, 2),
        (saves.complete, 2),
        (saves.config_changed, 1),
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


def killed_at(point: int, folder: Path) -> bool:
    """Put update 6 in place in a process that is killed before its file operation number `point`, if it gets there."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left = point

    def before_each(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir") and str(folder) in str(arguments[0]):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(before_each)
    put(folder / f"partial-{checkpoint.name(6)}", 6)
    os._exit(0)


def test_killed_before_every_file_operation_of_a_save(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One checkpoint is kept: the old or the new one is whole, and what was left goes at the next start."""
    taken = []
    for point in range(200):
        folder = tmp_path / f"{point}" / "checkpoints"
        put(written(folder, 3), 3)
        written(folder, 6)
        died = killed_at(point, folder)
        chosen = checkpoint.choose(folder, 1)
        assert chosen is not None and not capsys.readouterr().out
        taken.append(checkpoint.check(chosen).update)
        left = {path.name for path in folder.iterdir()} - {checkpoint.name(3), checkpoint.name(6)}
        assert left == {"latest"}
        shutil.rmtree(folder.parent)
        if not died:
            break
    assert point > 20 and taken == sorted(taken) and set(taken) == {3, 6}
