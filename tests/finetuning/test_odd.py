"""Fewer rows than ranks, and an update larger than the training set."""

from pathlib import Path
from typing import Any

import pytest
from finetuning.test_families import opened
from finetuning.tuned import tune
from ranks import Pool

from fast_electra.files import read_json

transformers = pytest.importorskip("transformers")


def test_one_row_is_learnt_on_two_ranks(tmp_path: Path, pools: dict[int, Pool]) -> None:
    """The model that is written gives the value itself, which is far from 0."""
    sizes: dict[str, Any] = {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64, "sinusoidal_pos_embds": True}
    opened(tmp_path / "model", "DistilBert", **sizes)
    (tmp_path / "task.json").write_text('{"name": "own", "fields": ["text"], "metric": "pearson"}')
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.csv").write_text("text,label\nwar,1950.5\n")
    values = {"task": tmp_path / "task.json", "data": tmp_path, "pretrained": tmp_path / "model", "epochs": 0.001}
    values |= {"run": tmp_path / "run", "sequence_length": 16, "log_every": 1}
    given = [f"fast_electra.{key}={value}" for key, value in values.items()]
    pools[2].run(tune, [*given, "train_batch_size=8", "bf16.enabled=false"], None, 1)
    assert read_json(tmp_path / "run/scores.json")["dev"]["heldout_score"] == 0.0
    assert "1950" in (tmp_path / "run/predictions/own.tsv").read_text()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/model")
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "run/model")("war", return_tensors="pt")
    assert abs(model(tokens["input_ids"]).logits.item() - 1950.5) < 1
