"""`deepspeed launch/preprocess.py` as users start it: killed, resumed by more processes, complete; and refused."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import conftest
import pytest
import small
import torch
from small import ALONE

from fast_electra import config
from fast_electra.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from fast_electra.corruption import corrupt
from fast_electra.jobs import preprocess
from fast_electra.model.files import save_model
from fast_electra.model.heads import MaskedLanguageModel
from fast_electra.parts import masking, open_run_corpus
from fast_electra.replacement.auxiliary import Temperature
from fast_electra.settings import UserError
from fast_electra.store.format import MANIFEST, PLAN
from fast_electra.store.match import open_for_run

Launch = Callable[..., "subprocess.CompletedProcess[str]"]
UPDATES, BATCH, PART = 60, 32, 16


@pytest.fixture(scope="module")
def auxiliary() -> MaskedLanguageModel:
    return small.masked_lm(seed=3)


@pytest.fixture(scope="module")
def path(
    tiny_corpus: conftest.Corpus, auxiliary: MaskedLanguageModel, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A config, beside the run folder of its auxiliary."""
    folder = tmp_path_factory.mktemp("preprocess")
    sizes, evaluation = auxiliary.encoder.settings, {"heldout_mlm_accuracy": 0.25}
    section = {"model": sizes.model_dump(), "auxiliary": {"run": str(folder / "auxiliary"), "dtype": "fp32"}}
    tree = small.tree(tiny_corpus, BATCH, updates=UPDATES, evaluation={"sequences": 20}, **section)
    (folder / "config.json").write_text(json.dumps(tree))
    tokenizer, weights = SentencePieceTokenizer.load(tiny_corpus.tokenizer).hash, auxiliary.state_dict()
    save_model(folder / "auxiliary" / "model", "mlm", sizes, weights, tokenizer=tokenizer, evaluation=evaluation)
    return folder / "config.json"


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


def test_killed_resumed_by_more_ranks_and_read(
    path: Path, auxiliary: MaskedLanguageModel, launch: Launch, tmp_path: Path
) -> None:
    """One process is killed, two finish; then a run without an auxiliary sees what one with it does."""
    folder = tmp_path / "store"
    kill_after(3, config.load(path), folder)
    before = parts(folder)
    total = -(-UPDATES * BATCH // PART) + -(-20 // PART) + -(-80 // PART)
    assert 3 <= len(before) < total and not (folder / MANIFEST).exists() and (folder / PLAN).exists()

    arguments = ["--deepspeed_config", str(path), "--output", str(folder), "--part", "1000"]  # the store keeps its own
    output = launch("launch/preprocess.py", arguments, ranks=2).stdout
    after = parts(folder)
    assert len(after) == total and all(after[name] == part for name, part in before.items())
    assert "2 processes on cpu; resuming:" in output and output.count("bytes a sequence (256 M such") == 1
    assert sorted(path.name for path in folder.iterdir()) == sorted([*after, MANIFEST, PLAN])

    settings = small.load(path, replacement__store=str(folder))
    corpus = open_run_corpus(settings.run)
    stored, facts = open_for_run(settings, corpus, ALONE)
    assert facts["heldout_mlm_accuracy"] == 0.25 and facts["auxiliary_dtype"] == "fp32"
    online, chosen = Temperature(auxiliary, small.UNK), masking(settings.run, corpus.tokenizer)
    for n in range(0, UPDATES, 7):
        (batch,) = small.batches(corpus.train, n, seed=0, micro_batch=BATCH)
        strength = settings.run.curriculum.strength((n + 1) / UPDATES)
        one, other = (corrupt(batch, chosen, draws, strength) for draws in (online, stored))
        assert torch.equal(one.tokens_T, other.tokens_T)


def test_a_complete_store_is_left_alone(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocess, "PROGRESS", 0.0)
    settings = small.load(path, updates=3)
    preprocess.write(settings, tmp_path, ALONE)
    before, output = parts(tmp_path), capsys.readouterr().out
    assert len(before) == 3 and re.search(r"preprocessed 100.0%, [\d,]+ sequences/s, \d+ bytes .*0:00:00 left", output)
    assert re.search(r"196 sequences, [\d.]+ masked positions each, 1.\d\d pieces a position; .* GB\)", output)
    preprocess.write(settings, tmp_path, ALONE)
    assert parts(tmp_path) == before and f"{tmp_path} is complete (196 sequences)" in capsys.readouterr().out
    other = small.load(path, updates=4)
    with pytest.raises(UserError, match=r"up to 96, the run asks for 128"):
        preprocess.write(other, tmp_path, ALONE)
    next(tmp_path.glob("train-*")).unlink()
    with pytest.raises(UserError, match=r"train-00000.safetensors is missing; remove that file and .*manifest.json"):
        preprocess.write(settings, tmp_path, ALONE)


def test_the_store_that_the_config_names_is_the_default(path: Path, tmp_path: Path) -> None:
    named = small.load(path, replacement__store=str(tmp_path))
    assert preprocess.destination(named, None, 1) == tmp_path
    assert preprocess.destination(named, tmp_path / "other", 1) == tmp_path / "other"
    with pytest.raises(UserError, match=r"no output folder: pass --output DIR or set fast_electra.replacement.store"):
        preprocess.destination(config.load(path), None, 1)
    with pytest.raises(UserError, match="at least 1, not 0"):
        preprocess.destination(named, None, 0)
    with pytest.raises(UserError, match="objective mlm draws no replacements from a frozen model"):
        preprocess.destination(config.load("ds_configs/tiny_auxiliary.json"), tmp_path, 1)
