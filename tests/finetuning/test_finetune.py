"""Whole fine-tunings on real ranks: the eight GLUE tasks, equality over ranks and resumption, and a search."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Corpus
from finetuning.glue_files import write_glue
from finetuning.tuned import hugging_face, overrides, pretrained, tune, tune_all
from ranks import Pool
from safetensors.torch import load_file

from fast_electra.files import read_json
from fast_electra.finetuning.tables import read_data
from fast_electra.finetuning.tasks import TASKS
from fast_electra.model.files import load_model
from fast_electra.training.metrics import read_metrics

pytestmark = pytest.mark.timeout(600)
ROWS = 96
# The GLUE server's names, as its FAQ has them.
FILES = {
    "cola": ["CoLA"],
    "sst2": ["SST-2"],
    "mrpc": ["MRPC"],
    "qqp": ["QQP"],
    "stsb": ["STS-B"],
    "mnli": ["MNLI-m", "MNLI-mm"],
    "qnli": ["QNLI"],
    "rte": ["RTE"],
}


@pytest.fixture(scope="module")
def glue(tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory, pools: dict[int, Pool]) -> Path:
    """All eight tasks, fine-tuned on two ranks."""
    folder = tmp_path_factory.mktemp("glue")
    model = pretrained(folder / "pretrained", tiny_corpus)
    given = []
    for task in TASKS:
        data = write_glue(folder / "data", task, ROWS)
        given.append(overrides(task, data, model, tiny_corpus, folder / task))
    pools[2].run(tune_all, given)
    return folder


@pytest.mark.parametrize("task", TASKS)
def test_each_glue_task_is_learnt_and_predicted(glue: Path, task: str) -> None:
    run, spec = glue / task, TASKS[task]
    found = read_json(run / "scores.json")
    assert found["dev"]["heldout_score"] > 0.7  # guessing gives 0, 0.33 or 0.5
    data = read_data(spec, next((glue / "data").glob(spec.shown)))
    tests = [name for name in data if name.startswith("test")]
    assert len(tests) == len(FILES[task])
    for name, file in zip(tests, FILES[task], strict=True):
        rows = list(csv.reader((run / f"predictions/{file}.tsv").open(), delimiter="\t"))
        assert rows[0] == ["index", "prediction"] and len(rows) == len(data[name]) + 1
    assert json.loads((run / "status.json").read_text())["state"] == "completed"
    assert (run / "report.html").exists() and not (run / "checkpoints").exists()


@pytest.mark.parametrize("task", ["mnli", "stsb"])
@torch.no_grad()
def test_the_model_that_is_written_makes_the_scores(glue: Path, tiny_corpus: Corpus, task: str) -> None:
    """Each row alone, through the model from its folder: no batch, no engine."""
    from fast_electra.batch import Layout
    from fast_electra.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
    from fast_electra.finetuning.pretrained import encoder_of

    spec, data = TASKS[task], glue / "data" / TASKS[task].shown
    model, description = load_model(glue / task / "model", "classifier", "")
    assert description["labels"] == list(spec.labels) and description["sequence_length"] == 64
    model.eval()
    encode = encoder_of(SentencePieceTokenizer.load(tiny_corpus.tokenizer))
    table = read_data(spec, data)[spec.dev[0]]
    outputs = np.array(
        [model(torch.tensor(ids), Layout.of(torch.tensor([len(ids)])))[0].numpy() for ids, _ in encode(table.texts, 64)]
    )
    row = read_json(glue / task / "scores.json")["dev"]
    if spec.labels:
        key = "heldout_matched_accuracy" if task == "mnli" else "heldout_accuracy"
        assert row[key] == pytest.approx((outputs.argmax(1) == table.labels).mean())
    else:
        assert row["heldout_pearson"] == pytest.approx(np.corrcoef(outputs[:, 0], table.labels)[0, 1], abs=1e-5)


def test_both_dev_sets_of_mnli_make_its_score(glue: Path) -> None:
    row = read_json(glue / "mnli/scores.json")["dev"]
    assert row["heldout_score"] == pytest.approx(
        (row["heldout_matched_accuracy"] + row["heldout_mismatched_accuracy"]) / 2
    )
    _, evaluations, _ = read_metrics(glue / "mnli")
    assert len(evaluations) == 8  # one an epoch


def test_one_rank_and_two_agree_with_dropout(tiny_corpus: Corpus, tmp_path: Path, pools: dict[int, Pool]) -> None:
    data, model = write_glue(tmp_path / "data", "rte", 24), pretrained(tmp_path / "pretrained", tiny_corpus)
    weights = []
    for world in (1, 2):
        given = overrides("rte", data, model, tiny_corpus, tmp_path / str(world), **{"fast_electra.dropout": 0.2})
        pools[world].run(tune, given, None, 1)
        weights.append(load_file(tmp_path / str(world) / "model/model.safetensors"))
    for name, weight in weights[0].items():
        assert torch.allclose(weight, weights[1][name], atol=2e-5), name


def test_resumed_equals_uninterrupted(tiny_corpus: Corpus, tmp_path: Path, pools: dict[int, Pool]) -> None:
    data, model = write_glue(tmp_path / "data", "rte", 24), pretrained(tmp_path / "pretrained", tiny_corpus)
    more = {"fast_electra.dropout": 0.2, "fast_electra.checkpoint.every": 7}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    pools[1].run(interrupted, overrides("rte", data, model, tiny_corpus, cut, **more), 11)
    assert json.loads((cut / "status.json").read_text())["state"] == "failed"
    for run in (whole, cut):
        pools[1].run(tune, overrides("rte", data, model, tiny_corpus, run, **more), None, 1)
    first, second = (load_file(run / "model/model.safetensors") for run in (whole, cut))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert read_metrics(cut)[2][0]["event"] == "resumed"


def interrupted(given: list[str], update: int, ranks: Any) -> None:
    """Fine-tune, and fail at an update."""
    from fast_electra.objectives.finetuning import FineTuning

    loss, count = FineTuning.loss, iter(range(1, 1000))

    def failing(*arguments: Any) -> Any:
        if next(count) == update:
            raise RuntimeError("the machine is gone")
        return loss(*arguments)

    FineTuning.loss = failing  # type: ignore[method-assign]
    try:
        tune(given, None, 1, ranks)
    except RuntimeError:
        pass
    finally:
        FineTuning.loss = loss  # type: ignore[method-assign]


def test_a_search_of_a_hugging_face_encoder_under_the_launcher(
    bert: Path, tmp_path: Path, launch: Callable[..., Any]
) -> None:
    """Two settings, two seeds, two processes. The same command again trains nothing; a lost member is trained again."""
    transformers = pytest.importorskip("transformers")
    data, run = write_glue(tmp_path / "data", "sst2", ROWS), tmp_path / "search"
    command = ["--deepspeed_config", "ds_configs/finetune.json", "--task", "SST-2", "--data", str(data)]
    command += ["--checkpoint", str(bert), "--grid", "learning_rate=1e-9,0.01", "--seeds", "2"]
    keys = {"run": run, "sequence_length": 32, "epochs": 3, "dropout": 0.0}
    command += [part for key, value in keys.items() for part in ("--set", f"fast_electra.{key}={value}")]
    command += ["--set", "train_batch_size=8", "--set", "bf16.enabled=false"]
    output = launch("launch/finetune.py", command).stdout
    results = json.loads((run / "results.json").read_text())
    assert results["best"] == "learning_rate=0.01" and len(results["settings"]) == 2
    assert results["settings"][0]["median"] > 0.9
    assert "best model: " in output and "median of 2 seeds" in output
    kept = [path.parent for path in run.glob("*/*/model")]
    assert kept == [run / results["model"]]

    model = transformers.AutoModelForSequenceClassification.from_pretrained(kept[0] / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(kept[0] / "model")
    table = read_data(TASKS["sst2"], data)["dev"]
    with torch.no_grad():
        logits = model.eval()(**tokenizer([text for (text,) in table.texts], padding=True, return_tensors="pt")).logits
    accuracy = (logits.argmax(1).numpy() == table.labels).mean()
    assert accuracy == read_json(kept[0] / "scores.json")["dev"]["heldout_accuracy"]

    lost = run / "learning_rate=1e-09/seed-1"
    shutil.rmtree(lost)
    again = launch("launch/finetune.py", command).stdout
    assert again.count("parameters, fp32") == 1 and f"run 2 of 4: {lost.relative_to(run)}" in again
    assert json.loads((run / "results.json").read_text()) == results


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_each_glue_task_under_the_launcher(
    tiny_corpus: Corpus, tmp_path: Path, launch: Callable[..., Any], task: str
) -> None:
    """What the pool's ranks do above, from the command line and in two processes of the `deepspeed` launcher."""
    data, model = write_glue(tmp_path / "data", task, ROWS), pretrained(tmp_path / "pretrained", tiny_corpus)
    given = overrides(task, data, model, tiny_corpus, tmp_path / "run")
    command = ["--deepspeed_config", "ds_configs/finetune.json"]
    command += ["--task", task, "--data", str(data), "--checkpoint", str(model)]
    output = launch("launch/finetune.py", [*command, *(part for one in given[3:] for part in ("--set", one))]).stdout
    assert "2 processes on" in output and f"model: {tmp_path / 'run/model'}" in output
    assert read_json(tmp_path / "run/scores.json")["dev"]["heldout_score"] > 0.7


@pytest.mark.gpu
@pytest.mark.parametrize("task", ["mnli", "stsb"])
def test_a_gpu_learns_a_task_in_16_bit(
    tiny_corpus: Corpus, tmp_path: Path, launch: Callable[..., Any], task: str
) -> None:
    data, model = write_glue(tmp_path / "data", task, ROWS), pretrained(tmp_path / "pretrained", tiny_corpus)
    more = {"bf16.enabled": "auto", "fast_electra.dropout": 0.05}
    given = overrides(task, data, model, tiny_corpus, tmp_path / "run", **more)
    command = ["--deepspeed_config", "ds_configs/finetune.json", *(part for one in given for part in ("--set", one))]
    output = launch("launch/finetune.py", command, ranks=1).stdout
    assert "on cuda" in output and "fp32," not in output
    assert read_json(tmp_path / "run/scores.json")["dev"]["heldout_score"] > 0.7


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hugging_face(tmp_path_factory.mktemp("bert"))
