"""A search's folder after a kill, under another model, and with settings in another order."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Corpus
from finetuning.glue_files import write_glue
from finetuning.tuned import overrides, pretrained, tune
from ranks import Pool

from fast_electra.files import read_json
from fast_electra.finetuning.sweep import Grid, parse_grid
from fast_electra.settings import UserError


class Killed(BaseException):
    """What no part of the program catches."""


def killed(given: Sequence[str], grid: Grid, removed: str, ranks: Any) -> None:
    """Search until a folder `removed` is removed, and die when one file of it is gone."""
    remove = shutil.rmtree

    def half(path: Path, *arguments: Any, **more: Any) -> None:
        if removed in Path(path).name and Path(path).exists():
            max(file for file in Path(path).rglob("*") if file.is_file()).unlink()
            raise Killed
        remove(path, *arguments, **more)

    shutil.rmtree = half  # type: ignore[assignment]
    try:
        with pytest.raises(Killed):
            tune(given, grid, 1, ranks)
    finally:
        shutil.rmtree = remove


def refused(given: Sequence[str], grid: Grid, message: str, ranks: Any) -> None:
    with pytest.raises(UserError, match=f"^[^\n]*{message}[^\n]*$"):
        tune(given, grid, 1, ranks)


@pytest.mark.parametrize("removed", ["checkpoints", "model"])
def test_a_kill_while_a_folder_is_removed_is_made_good(
    tiny_corpus: Corpus, tmp_path: Path, pools: dict[int, Pool], removed: str
) -> None:
    data, model = write_glue(tmp_path / "data", "sst2", 16), pretrained(tmp_path / "pretrained", tiny_corpus)
    given = overrides("sst2", data, model, tiny_corpus, tmp_path / "run", **{"fast_electra.epochs": 1})
    grid: Grid = {"learning_rate": (1e-9, 2e-9)}
    pools[1].run(killed, given, grid, removed)
    pools[1].run(tune, given, grid, 1)
    assert len([*tmp_path.glob("run/*/*/model/model.safetensors")]) == 1
    assert not [*tmp_path.glob("run/*/*/*checkpoints*"), *tmp_path.glob("run/*/*/.model*")]


def test_a_member_without_a_model_is_not_taken_for_another(
    tiny_corpus: Corpus, tmp_path: Path, pools: dict[int, Pool]
) -> None:
    """The scores tie, so the first setting keeps its model. In another order too, one model stays."""
    data, model = write_glue(tmp_path / "data", "sst2", 16), pretrained(tmp_path / "pretrained", tiny_corpus)
    given = overrides("sst2", data, model, tiny_corpus, tmp_path / "run", **{"fast_electra.epochs": 1})
    first, second = tmp_path / "run/learning_rate=1e-09/seed-0", tmp_path / "run/learning_rate=2e-09/seed-0"
    for rates in ((1e-9, 2e-9), (2e-9, 1e-9)):
        pools[1].run(tune, given, {"learning_rate": rates}, 1)
        assert (first / "model").exists() and not (second / "model").exists()
    pools[1].run(refused, given, {"learning_rate": (2e-9,)}, f"{second}/model was removed: remove {second} too")

    other = pretrained(tmp_path / "other", tiny_corpus, layers=2)
    given = overrides("sst2", data, other, tiny_corpus, tmp_path / "run", **{"fast_electra.epochs": 1})
    pools[1].run(refused, given, {"learning_rate": (2e-9,)}, "the model of --checkpoint is another one")

    (first / "scores.json").write_text("{")
    given = overrides("sst2", data, model, tiny_corpus, tmp_path / "run", **{"fast_electra.epochs": 1})
    pools[1].run(refused, given, {"learning_rate": (1e-9,)}, f"scores.json cannot be read .* remove the folder {first}")


def test_a_loss_that_is_not_finite_is_null(tiny_corpus: Corpus, tmp_path: Path, pools: dict[int, Pool]) -> None:
    """No float32 holds the squares of these values, and the run ends before ten updates are skipped."""
    model, task = pretrained(tmp_path / "pretrained", tiny_corpus), tmp_path / "task.json"
    task.write_text('{"name": "own", "fields": ["sentence"], "metric": "spearman"}')
    for split in ("train", "dev"):
        rows = "".join(f"the king\t{number}e25\n" for number in range(16))
        (tmp_path / f"{split}.tsv").write_text(f"sentence\tlabel\n{rows}")
    given = overrides(str(task), tmp_path, model, tiny_corpus, tmp_path / "run", **{"fast_electra.epochs": 1})
    pools[1].run(tune, given, None, 1)
    dev = read_json(tmp_path / "run/scores.json")["dev"]
    assert dev["heldout_score"] == 0.0 and dev["heldout_loss"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lr=1"], "unknown hyperparameter 'lr'"),
        (["epochs=x"], "write NAME=NUMBER,NUMBER"),
        (["epochs=2", "epochs=3"], "epochs was given before"),
    ],
)
def test_a_wrong_grid_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=f"^--grid [^\n]*{message}[^\n]*$"):
        parse_grid(words)
