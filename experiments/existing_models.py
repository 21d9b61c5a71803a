"""Two models of Hugging Face, end to end: a masked language model by transformers' Trainer drives RTD of an encoder.

    python experiments/existing_models.py --task FOLDER [--folder runs/existing_models] [--seeds 5]

The text is the corpus that ships; the tokenizer is one of Hugging Face, trained on it. FOLDER holds the files of the
task `experiments/tasks/rt_sentiment.json`. It needs the package accelerate. All is resumed when the command is started
again. At the end it writes experiments/results/existing_models.json.
"""

import argparse
import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from transfer import ROOT, command, settings

from fast_electra.files import read_json, write_json
from fast_electra.training.machine import cpu_name
from fast_electra.training.metrics import read_metrics

RESULTS = ROOT / "experiments/results/existing_models.json"
VOCABULARY, LENGTH, BATCH = 4096, 64, 64
SIZES = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512, "max_position_embeddings": 128}
PLAIN = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.06}
MLM_UPDATES, MLM_RATE = 2000, 2e-3
UPDATES, RATE = 2000, 5e-4
EPOCHS, TASK_RATE = 4, 1e-3
BEGINNINGS = ("random", "encoder", "rtd")  # new weights, before RTD, after RTD


def main() -> None:
    """Train, fine-tune, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/existing_models")
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    folder: Path = given.folder
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer(folder)
    if not (folder / "shards").exists():
        source = ("--input", "sample", "--tokenizer", folder / "tokenizer", "--output", folder / "shards")
        command("-m", "fast_electra.cli", "corpus", *source, "--heldout", 0.05, log=folder / "corpus.log")
    train_mlm(folder, "mlm", 2)
    train_mlm(folder, "main_mlm", 4)
    take_encoder(folder)
    pretrain(folder)
    for name in BEGINNINGS:
        finetune(folder, given.task, name, given.seeds)
    write(folder, given.seeds)


def make_tokenizer(folder: Path) -> None:
    """Train WordPiece on the corpus that ships, as BERT's was."""
    place = folder / "tokenizer"
    if place.exists():
        return
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizer

    from fast_electra.text.inputs import expand
    from fast_electra.text.readers import read_documents

    trained = BertWordPieceTokenizer(lowercase=True)
    texts = (document.text for document in read_documents(expand(["sample"])) if hasattr(document, "text"))
    trained.train_from_iterator(texts, vocab_size=VOCABULARY, show_progress=False)
    folder.joinpath("words").mkdir(exist_ok=True)
    trained.save_model(str(folder / "words"))
    BertTokenizer.from_pretrained(folder / "words", do_lower_case=True).save_pretrained(place)


def train_mlm(folder: Path, name: str, layers: int) -> None:
    """Train a masked language model by transformers' Trainer, on the tokens of the shards."""
    place = folder / name
    if place.exists():
        return
    import torch
    import transformers

    from fast_electra.corpus.sequences import Sequences
    from fast_electra.corpus.shards import Shards
    from fast_electra.corpus.tokenizer import open_tokenizer

    sequences = Sequences(Shards.open(folder / "shards"), open_tokenizer(folder / "shards"), LENGTH)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")
    config = transformers.BertConfig(vocab_size=len(tokenizer), num_hidden_layers=layers, **SIZES | PLAIN)
    torch.manual_seed(0)
    rows = [{"input_ids": sequences.tokens(torch.tensor([number]))} for number in range(len(sequences))]
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=MLM_UPDATES,
        per_device_train_batch_size=BATCH,
        learning_rate=MLM_RATE,
        warmup_steps=MLM_UPDATES // 10,
        adam_beta2=0.98,
        weight_decay=0.01,
        save_strategy="no",
        report_to="none",
        logging_steps=100,
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = transformers.Trainer(
        model=transformers.BertForMaskedLM(config),
        args=arguments,
        train_dataset=rows,
        data_collator=transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15),
    )
    trainer.train()
    trainer.save_model(str(folder / "partial"))
    tokenizer.save_pretrained(folder / "partial")
    write_json(folder / f"{name}.json", {"log": trainer.state.log_history})
    (folder / "partial").rename(place)


def take_encoder(folder: Path) -> None:
    """Write the encoder of the larger masked language model, whose training goes on by RTD."""
    place = folder / "encoder"
    if place.exists():
        return
    import transformers

    transformers.BertForMaskedLM.from_pretrained(folder / "main_mlm").bert.save_pretrained(place)
    transformers.AutoTokenizer.from_pretrained(folder / "tokenizer").save_pretrained(place)


def pretrain(folder: Path) -> None:
    """Train the encoder by RTD against the frozen masked language model."""
    keys = {
        "run": folder / "rtd",
        "model.huggingface": folder / "encoder",
        "auxiliary.huggingface": folder / "mlm",
        "corpus.shards": folder / "shards",
        "corpus.tokenizer": folder / "shards",
        "corpus.sequence_length": LENGTH,
        "updates": UPDATES,
        "evaluation.every": 1000,
        "checkpoint.every": 500,
        "checkpoint.keep": 1,
    }
    deepspeed = {
        "train_batch_size": BATCH,
        "optimizer.params.lr": RATE,
        "scheduler.params.warmup_num_steps": UPDATES // 10,
        "bf16.enabled": "false",
        "fp16.enabled": "false",
    }
    values = {f"fast_electra.{key}": value for key, value in keys.items()} | deepspeed
    config = ("--deepspeed_config", ROOT / "ds_configs/continue.json")
    command("launch/pretrain.py", *config, *settings(values), log=folder / "rtd.log")


def finetune(folder: Path, data: Path, name: str, seeds: int) -> None:
    """Fine-tune one of BEGINNINGS with every seed."""
    run = folder / "tasks" / name
    if (run / "results.json").exists():
        return
    keys = {
        "run": run,
        "pretrained": folder / ("encoder" if name == "random" else name),
        "initialization": "random" if name == "random" else "pretrained",
        "sequence_length": LENGTH,
        "epochs": EPOCHS,
        "dropout": 0.0,
    }
    values = {f"fast_electra.{key}": value for key, value in keys.items()} | {"optimizer.params.lr": TASK_RATE}
    task = ROOT / "experiments/tasks/rt_sentiment.json"
    what = ("--deepspeed_config", ROOT / "ds_configs/finetune.json", "--task", task, "--data", data)
    command("launch/finetune.py", *what, "--seeds", seeds, *settings(values), log=folder / f"{name}_task.log")


def write(folder: Path, seeds: int) -> None:
    """Write the figures."""
    evaluations = [row for row in read_metrics(folder / "rtd")[1] if "heldout_auc" in row]
    last: dict[str, Any] = {key: evaluations[-1][key] for key in ("heldout_auc", "heldout_auc_token_identity")}
    scores = {}
    for name in BEGINNINGS:
        places = [folder / "tasks" / name / (f"seed-{seed}" if seeds > 1 else "") for seed in range(seeds)]
        found = [read_json(place / "scores.json")["test"]["test_score"] for place in places]
        scores[name] = {"scores": found, "mean": mean(found), "deviation": stdev(found) if seeds > 1 else None}
    logs = {name: json.loads((folder / f"{name}.json").read_text())["log"] for name in ("mlm", "main_mlm")}
    losses = {name: [float(row["loss"]) for row in log if "loss" in row][-1] for name, log in logs.items()}
    about = {"machine": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()}
    about |= {name: version(name) for name in ("torch", "deepspeed", "transformers")}
    about |= {"date": f"{datetime.now(UTC):%Y-%m-%d}"}
    result = {"about": about, "mlm_loss": losses, "rtd": last, "rt_sentiment": scores}
    write_json(RESULTS, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
