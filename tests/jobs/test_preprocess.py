"""`deepspeed launch/preprocess.py` as users start it: killed, gone on with by more processes, complete; and refused."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conftest
import pytest
import torch

from fast_electra import config
from fast_electra.corpus.loader import Loader, Share
from fast_electra.corpus.tokenizer import Tokenizer
from fast_electra.corruption import corrupt
from fast_electra.deepspeed_config import Machine
from fast_electra.jobs import preprocess
from fast_electra.model.files import save_model
from fast_electra.model.heads import MaskedLanguageModel
from fast_electra.parts import masking, open_run_corpus
from fast_electra.replacement.auxiliary import Temperature
from fast_electra.settings import UserError
from fast_electra.store.format import MANIFEST, PLAN
from fast_electra.store.match import open_for_run
from fast_electra.training.engines import Ranks

Launch = Callable[..., "subprocess.CompletedProcess[str]"]
UPDATES, BATCH, PART = 60, 32, 16
ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def model() -> dict[str, Any]:
    """Sizes of an auxiliary that is good enough: untrained, with distributions far from uniform."""
    return {"vocabulary_size": 1000, "layers": 1, "hidden_size": 32, "ffn_size": 64, "heads": 2, "initial_std": 0.4}


@pytest.fixture(scope="module")
def arguments(
    tiny_corpus: conftest.Corpus, model: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    auxiliary = tmp_path_factory.mktemp("preprocess") / "auxiliary"
    values: dict[str, Any] = {
        "train_batch_size": BATCH,
        "fast_electra.updates": UPDATES,
        "fast_electra.corpus.shards": str(tiny_corpus.shards),
        "fast_electra.corpus.tokenizer": str(tiny_corpus.tokenizer),
        "fast_electra.corpus.sequence_length": 32,
        "fast_electra.evaluation.sequences": 20,
        "fast_electra.auxiliary.run": str(auxiliary),
        "fast_electra.auxiliary.dtype": "fp32",
        **{f"fast_electra.model.{name}": value for name, value in model.items()},
    }
    overrides = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    settings = config.load("ds_configs/tiny.json", overrides[1::2], Machine(1)).run.model
    weights = MaskedLanguageModel(settings, seed=3).state_dict()
    tokenizer = Tokenizer.load(tiny_corpus.tokenizer).hash
    evaluation = {"heldout_mlm_accuracy": 0.25}
    save_model(auxiliary / "model", "mlm", settings, weights, tokenizer=tokenizer, evaluation=evaluation)
    return ["--deepspeed_config", "ds_configs/tiny.json", *overrides]


def parts(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("*.safetensors")}


def kill_after(count: int, settings: config.Config, folder: Path) -> None:
    """A process of its own writes the store, and gets SIGKILL as soon as so many parts are there."""
    child = os.fork()
    if child == 0:
        try:
            preprocess.write(settings, folder, ALONE, PART)
        finally:
            os._exit(1)
    give_up = time.monotonic() + 120
    while len(list(folder.glob("*.safetensors"))) < count:
        assert os.waitpid(child, os.WNOHANG) == (0, 0) and time.monotonic() < give_up
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def test_killed_resumed_by_more_ranks_and_read(arguments: list[str], launch: Launch, tmp_path: Path) -> None:
    """One process is killed, two finish; then a run without an auxiliary sees what one with it does."""
    folder = tmp_path / "store"
    kill_after(3, config.load("ds_configs/tiny.json", arguments[3::2], Machine(1)), folder)
    before = parts(folder)
    total = -(-UPDATES * BATCH // PART) + -(-20 // PART) + -(-80 // PART)
    assert 3 <= len(before) < total and not (folder / MANIFEST).exists() and (folder / PLAN).exists()

    arguments = [*arguments, "--output", str(folder), "--part", "1000"]  # it was begun with others, and keeps them
    output = launch("launch/preprocess.py", arguments, ranks=2).stdout
    after = parts(folder)
    assert len(after) == total and all(after[name] == part for name, part in before.items())
    assert "2 processes on cpu; resuming:" in output and output.count("bytes a sequence (256 M such") == 1
    assert sorted(path.name for path in folder.iterdir()) == sorted([*after, MANIFEST, PLAN])

    settings = config.load(
        "ds_configs/tiny.json", [*arguments[3:-4:2], f"fast_electra.replacement.store={folder}"], Machine()
    )
    corpus = open_run_corpus(settings.run)
    stored, facts = open_for_run(settings, corpus, ALONE)
    assert facts["heldout_mlm_accuracy"] == 0.25 and facts["auxiliary_dtype"] == "fp32"
    auxiliary = MaskedLanguageModel(settings.run.model, seed=3).eval()
    online = Temperature(auxiliary, unk_id=1)
    loader, chosen = Loader(corpus.train, Share(BATCH, 1), 0, 0.15), masking(settings.run, corpus.tokenizer)
    for n in range(0, UPDATES, 7):
        value = settings.run.curriculum.strength((n + 1) / UPDATES)
        one, other = (corrupt(loader.batch(n)[0], chosen, draws, value) for draws in (online, stored))
        assert torch.equal(one.tokens_BL, other.tokens_BL)


def test_a_complete_store_is_left_alone(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocess, "PROGRESS", 0.0)
    settings = config.load("ds_configs/tiny.json", [*arguments[3::2], "fast_electra.updates=3"], Machine(1))
    preprocess.write(settings, tmp_path, ALONE)
    before, output = parts(tmp_path), capsys.readouterr().out
    assert len(before) == 3 and re.search(r"preprocessed 100.0%, [\d,]+ sequences/s, \d+ bytes .*0:00:00 left", output)
    assert re.search(r"196 sequences, [\d.]+ masked positions each, 1.\d\d pieces a position; .* GB\)", output)
    preprocess.write(settings, tmp_path, ALONE)
    assert parts(tmp_path) == before and f"{tmp_path} is complete (196 sequences)" in capsys.readouterr().out
    other = config.load("ds_configs/tiny.json", [*arguments[3::2], "fast_electra.updates=4"], Machine(1))
    with pytest.raises(UserError, match=r"up to 96, the run asks for 128"):
        preprocess.write(other, tmp_path, ALONE)
    next(tmp_path.glob("train-*")).unlink()
    with pytest.raises(UserError, match=r"train-00000.safetensors is missing; remove that file and .*manifest.json"):
        preprocess.write(settings, tmp_path, ALONE)


def test_the_store_that_the_config_names_is_the_default(arguments: list[str], tmp_path: Path) -> None:
    def settings(*overrides: str) -> config.Config:
        return config.load("ds_configs/tiny.json", [*arguments[3::2], *overrides], Machine(1))

    named = settings(f"fast_electra.replacement.store={tmp_path}")
    assert preprocess.destination(named, None, 1) == tmp_path
    assert preprocess.destination(named, tmp_path / "other", 1) == tmp_path / "other"
    with pytest.raises(UserError, match=r"no output folder: pass --output DIR or set fast_electra.replacement.store"):
        preprocess.destination(settings(), None, 1)
    with pytest.raises(UserError, match="at least 1, not 0"):
        preprocess.destination(named, None, 0)
    with pytest.raises(UserError, match="objective mlm draws no replacements from a frozen model"):
        preprocess.destination(config.load("ds_configs/tiny_auxiliary.json", [], Machine(1)), tmp_path, 1)
