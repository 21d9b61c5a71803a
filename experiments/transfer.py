"""Does pre-training help? One architecture from four beginnings, fine-tuned on the tasks of experiments/tasks/.

    python experiments/transfer.py --text FILE --tasks FOLDER [--folder runs/transfer] [--workers 2] [--seeds 5]

FILE is the text to pre-train on (100 MB or more). In FOLDER, each task has a folder of its name. All is resumed when
the command is started again. After each task it writes what is complete to experiments/results/transfer.json, and plot
and table to docs/. `--only` names some of the beginnings, and `--task` some of the tasks.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from compare import put
from floors import TASKS, floors
from matplotlib.figure import Figure

from fast_electra.files import read_json, write_json
from fast_electra.finetuning.tables import read_data
from fast_electra.finetuning.tasks import Task, open_task
from fast_electra.plotting import BLUE, GREY, ORANGE, STYLE
from fast_electra.training.machine import cpu_name
from fast_electra.training.metrics import read_metrics

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments/results/transfer.json"
VOCABULARY, UPDATES, AUXILIARY_UPDATES = 8192, 4000, 3000
MODEL = {
    "embedding_size": "null",
    "hidden_size": 256,
    "ffn_size": 1024,
    "heads": 4,
    "relative_start": "local",  # with "zero", an MLM spends 1,000 updates before it uses context
    "dropout": 0,
    "attention_dropout": 0,
}
# Config of ds_configs/, layers, peak learning rate. Joint training has half the rate, as in the paper.
PRETRAINED = {
    "auxiliary": ("small_auxiliary", 2, 0.002),
    "fast": ("small", 4, 0.003),
    "mlm": ("small_auxiliary", 4, 0.002),
    "joint": ("small_joint", 4, 0.001),
}
# The paper's 0.1 keeps the task easy for 12,500 of its updates, and would for 400 of ours: too few to leave the plateau
# on which a model knows tokens by their frequency alone (docs/results.md).
TAU = 0.3
BEGINNINGS = ("random", "mlm", "joint", "fast", "mlm_time", "joint_time")
LABELS = {
    "random": "random initialisation",
    "mlm": "MLM, equal updates",
    "joint": "joint training, equal updates",
    "fast": "Fast-ELECTRA",
    "mlm_time": "MLM, equal time",
    "joint_time": "joint training, equal time",
    "majority": "commonest answer",
    "tfidf": "TF-IDF, linear",
}
# Of fine-tuning, for every beginning; tried on dev sets.
EPOCHS = {"rt_sentiment": 3, "vader_intensity": 3, "qnli_squad": 3, "vitaminc_nli": 1}
RATE = 0.001
FILES = {file.stem: file for file in TASKS}  # of each task, by its name


def main() -> None:
    """Pre-train, fine-tune, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/transfer")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=BEGINNINGS, default=list(BEGINNINGS))
    parser.add_argument("--task", nargs="+", choices=EPOCHS, default=list(EPOCHS))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    make_corpus(given.folder, given.text)
    with ThreadPoolExecutor(given.workers) as pool:
        first = pool.submit(pretrain, given.folder, "auxiliary")
        others = [pool.submit(pretrain, given.folder, name) for name in ("mlm", "joint") if wanted(given.only, name)]
        first.result()
        others.append(pool.submit(pretrain, given.folder, "fast"))
        for future in others:
            future.result()
        timed = [name for name in given.only if name.endswith("_time")]
        list(pool.map(lambda name: pretrain(given.folder, name), timed))
        for task in given.task:
            jobs = [(given.folder, given.tasks, str(FILES[task]), name, given.seeds) for name in given.only]
            list(pool.map(lambda job: finetune(*job), jobs))
            write(given.folder, given.tasks, given.seeds)


def wanted(only: list[str], name: str) -> bool:
    """Return whether a pre-training is needed: for itself, or to know how many updates take an equal time."""
    return name in only or f"{name}_time" in only


def make_corpus(folder: Path, text: Path) -> None:
    """Make tokenizer and shards, unless they are there."""
    tokenizer, shards = folder / "tokenizer", folder / "shards"
    if not tokenizer.exists():
        size = ("--vocabulary", VOCABULARY, "--max-train-bytes", 30_000_000)
        command("-m", "fast_electra.cli", "tokenizer", "--input", text, "--output", tokenizer, *size)
    if not shards.exists():
        split = ("--heldout", 0.01, "--workers", 2)
        command(
            "-m", "fast_electra.cli", "corpus", "--input", text, "--tokenizer", tokenizer, "--output", shards, *split
        )


def command(*words: object, log: Path | None = None) -> None:
    """Run Python with these arguments in one thread; what it prints goes to a file."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    line = [sys.executable, *map(str, words)]
    with open(log or os.devnull, "a") as output:  # noqa: PTH123 (the null device is no path of ours)
        done = subprocess.run(line, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)} ended with {done.returncode}; see {log}")


def settings(values: dict[str, Any]) -> Iterator[str]:
    """Yield the arguments that set keys of a config."""
    for key, value in values.items():
        yield from ("--set", f"{key}={value}")


def pretrain(folder: Path, name: str) -> None:
    """Pre-train one model, or the rest of its updates."""
    kind = name.removesuffix("_time")
    file, layers, rate = PRETRAINED[kind]
    keys = {
        "run": folder / name,
        "corpus.shards": folder / "shards",
        "corpus.tokenizer": folder / "tokenizer",
        "corpus.sequence_length": 128,
        "updates": updates_of(folder, name),
        "evaluation.every": 1000,
        "evaluation.sequences": 256,
        "checkpoint.every": 500,
        "checkpoint.keep": 1,
        **{f"model.{key}": value for key, value in (MODEL | {"vocabulary_size": VOCABULARY, "layers": layers}).items()},
    }
    if kind == "fast":
        keys |= {"auxiliary.run": folder / "auxiliary", "curriculum.rate": TAU, "model.initial_std": 0.06}
    if kind == "joint":
        keys["joint.auxiliary_layers"] = PRETRAINED["auxiliary"][1]
    deepspeed = {
        "train_batch_size": 64,
        "optimizer.params.lr": rate,
        "optimizer.params.torch_adam": "false",  # but DeepSpeed's, compiled for the processor
        "scheduler.params.warmup_num_steps": updates_of(folder, name) // 10,
        "bf16.enabled": "true",
        "fp16.enabled": "false",
    }
    config = ("--deepspeed_config", ROOT / f"ds_configs/{file}.json")
    values = {f"fast_electra.{key}": value for key, value in keys.items()} | deepspeed
    command("launch/pretrain.py", *config, *settings(values), log=folder / f"{name}.log")
    print(f"{time.strftime('%H:%M')} pre-trained {name}", flush=True)


def updates_of(folder: Path, name: str) -> int:
    """Return the number of updates of a pre-training."""
    if name == "auxiliary":
        return AUXILIARY_UPDATES
    return equal_time(folder, name.removesuffix("_time")) if name.endswith("_time") else UPDATES


def equal_time(folder: Path, kind: str) -> int:
    """Return how many updates of another objective take as long as Fast-ELECTRA's, its auxiliary's counted in.

    The number is settled when it is first asked for, because the times of a run that is resumed may change.
    """
    kept = folder / f"{kind}_time.json"
    if not kept.exists():
        total = seconds(folder, "fast") * UPDATES + seconds(folder, "auxiliary") * AUXILIARY_UPDATES
        write_json(kept, {"updates": round(total / seconds(folder, kind))})
    return int(json.loads(kept.read_text())["updates"])


def seconds(folder: Path, name: str) -> float:
    """Return the median time of an update of a run."""
    return median(row["tokens"] / row["tokens_per_second"] for row in read_metrics(folder / name)[0])


def finetune(folder: Path, tasks: Path, file: str, name: str, seeds: int, model: str = "fast", **changes: Any) -> None:
    """Fine-tune one beginning on one task with every seed; `random` has the sizes of the run `model`.

    `changes` are keys of the section `fast_electra`.
    """
    task = open_task(file)
    run = folder / "tasks" / task.name / name
    if not is_fine_tuned(folder, task, name):
        keys = {
            "run": run,
            "pretrained": folder / (model if name == "random" else name),
            "initialization": "random" if name == "random" else "pretrained",
            "tokenizer": folder / "tokenizer",
            "sequence_length": 128,
            "epochs": EPOCHS[task.name],
            **changes,
        }
        values = {f"fast_electra.{key}": value for key, value in keys.items()}
        values |= {"optimizer.params.lr": RATE, "bf16.enabled": "true", "fp16.enabled": "false"}
        what = ("--deepspeed_config", ROOT / "ds_configs/finetune.json", "--task", file, "--data", tasks / task.name)
        log = folder / f"{task.name}_{name}.log"
        command("launch/finetune.py", *what, "--seeds", seeds, *settings(values), log=log)
    print(f"{time.strftime('%H:%M')} fine-tuned {name} on {task.name}", flush=True)


def is_fine_tuned(folder: Path, task: Task, name: str) -> bool:
    """Return whether a beginning is fine-tuned on a task, with every seed."""
    return (folder / "tasks" / task.name / name / "results.json").exists()


def write(folder: Path, tasks: Path, seeds: int) -> None:
    """Collect the test scores of every seed, and write figures, plot and table of what is complete."""
    found = {}
    for file in TASKS:
        task = open_task(str(file))
        done = [name for name in BEGINNINGS if is_fine_tuned(folder, task, name)]
        if scores := {name: test_scores(folder, task, name, seeds) for name in done}:
            bare = {name: row[task.metric] for name, row in floors(task, read_data(task, tasks / task.name)).items()}
            found[task.name] = {"metric": task.metric, "scores": scores, "floors": bare}
    pretrained = [name for name in (*PRETRAINED, *BEGINNINGS) if (folder / name / "metrics.jsonl").exists()]
    costs = {name: {"updates": updates_of(folder, name), "seconds": seconds(folder, name)} for name in pretrained}
    about = {"machine": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()}
    about |= {name: version(name) for name in ("torch", "deepspeed")} | {"date": f"{datetime.now(UTC):%Y-%m-%d}"}
    write_json(RESULTS, {"about": about, "tasks": found, "pretraining": costs, "epochs": EPOCHS})
    docs = ROOT / "docs/results.md"
    docs.write_text(show(found, docs.parent / "images", docs.read_text(encoding="utf-8")), encoding="utf-8")


def show(found: dict[str, Any], images: Path, text: str) -> str:
    """Draw the plot, and return the text with the table of each task's scores."""
    draw(found, images / "transfer.svg")
    return put(text, "transfer", table(found))


def test_scores(folder: Path, task: Task, name: str, seeds: int) -> list[float]:
    """Return the first metric on the test set, for each seed."""
    places = [folder / "tasks" / task.name / name / (f"seed-{seed}" if seeds > 1 else "") for seed in range(seeds)]
    return [read_json(place / "scores.json")["test"]["test_score"] for place in places]


def table(found: dict[str, Any]) -> str:
    """Return a Markdown table: mean and standard deviation over seeds, bold where it clears TF-IDF by two of them."""
    lines = [f"| | {' | '.join(found)} |", "|---" * (1 + len(found)) + "|"]
    for name in BEGINNINGS:
        cells = [_cell(task["scores"].get(name, []), task["floors"]["tfidf"]) for task in found.values()]
        if set(cells) != {"–"}:
            lines.append(f"| {LABELS[name]} | {' | '.join(cells)} |")
    for name in ("tfidf", "majority"):
        cells = [f"{task['floors'][name]:.3f}" for task in found.values()]
        lines.append(f"| {LABELS[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(scores: list[float], floor: float) -> str:
    if not scores:
        return "–"
    spread = stdev(scores) if len(scores) > 1 else 0.0
    cell = f"{mean(scores):.3f} ± {spread:.3f}"
    return f"**{cell}**" if mean(scores) - 2 * spread > floor else cell


def draw(found: dict[str, Any], file: Path) -> None:
    """Draw each seed as a point, its mean as a bar, and TF-IDF's score as a dashed line."""
    import matplotlib

    with matplotlib.rc_context(STYLE | {"figure.facecolor": "white", "svg.hashsalt": file.name}):
        figure = Figure(figsize=(9.0, 2.6), layout="constrained")
        shown = [name for name in BEGINNINGS if any(name in task["scores"] for task in found.values())]
        row = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
        for axes, (name, task) in zip(row, found.items(), strict=True):
            for place, beginning in enumerate(shown):
                scores, colour = task["scores"].get(beginning), BLUE if beginning == "fast" else ORANGE
                if scores is None:
                    continue
                axes.plot(scores, [place] * len(scores), "o", color=colour, markersize=3.5, alpha=0.7)
                axes.plot([mean(scores)], [place], "|", color=colour, markersize=14, markeredgewidth=2)
            axes.axvline(task["floors"]["tfidf"], color=GREY, linestyle=(0, (4, 3)), linewidth=1.2)
            axes.set_title(f"{name}\n{task['metric']}", fontsize=9)
            axes.set_yticks(range(len(shown)), [LABELS[beginning] for beginning in shown])
        axes.invert_yaxis()
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()
