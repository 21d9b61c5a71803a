"""Does pre-training help? One architecture from four beginnings, fine-tuned on the tasks of experiments/tasks/.

    python experiments/transfer.py --text FILE --tasks FOLDER [--folder runs/transfer] [--workers 2] [--seeds 5]

FILE is the text to pre-train on (100 MB or more). In FOLDER, each task has a folder of its name. All is resumed when
the command is started again. After each task it writes what is complete to experiments/results/transfer.json, and plot
and table to docs/. `--only` names some of the beginnings, and `--task` some of the tasks.
"""

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from compare import put
from fine_tuned import ROOT, about, command, fine_tune, is_fine_tuned, settings, test_scores
from floors import TASKS, floors
from matplotlib.figure import Figure

from fast_electra.files import write_json
from fast_electra.finetuning.tables import read_data
from fast_electra.finetuning.tasks import open_task
from fast_electra.plotting import BLUE, GREY, ORANGE, STYLE
from fast_electra.training.metrics import read_metrics

RESULTS = ROOT / "experiments/results/transfer.json"
VOCABULARY, UPDATES, AUXILIARY_UPDATES = 16_384, 10_000, 3000
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
    "fast_mlm": ("continue", 4, 0.001),
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
            jobs = [(given.folder, given.tasks, task, name, given.seeds) for name in given.only]
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
    }
    if kind == "fast_mlm":
        keys |= {"auxiliary.run": folder / "auxiliary", "auxiliary.huggingface": "null"}
        keys["model.huggingface"] = exported(folder / "mlm")
    else:
        sizes = MODEL | {"vocabulary_size": VOCABULARY, "layers": layers}
        keys |= {f"model.{key}": value for key, value in sizes.items()}
    if kind == "fast":
        keys |= {"auxiliary.run": folder / "auxiliary", "curriculum.rate": TAU, "model.initial_std": 0.06}
    if kind == "joint":
        keys["joint.auxiliary_layers"] = PRETRAINED["auxiliary"][1]
    if kind == "mlm":
        keys["corruption.mask_fraction"] = 0.2
    deepspeed = {
        "train_batch_size": 64,
        "train_micro_batch_size_per_gpu": 64,
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


def exported(run: Path) -> Path:
    """Export a model to a directory beside its run, unless it is there."""
    place = run.with_name(f"{run.name}_exported")
    if not place.exists():
        command("-m", "fast_electra.cli", "export", run, place)
    return place


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


def finetune(folder: Path, tasks: Path, task: str, name: str, seeds: int) -> None:
    """Fine-tune one beginning on one task with every seed."""
    keys = {
        "pretrained": folder / ("fast" if name == "random" else name),
        "initialization": "random" if name == "random" else "pretrained",
        "tokenizer": folder / "tokenizer",
        "sequence_length": 128,
        "epochs": EPOCHS[task],
    }
    deepspeed = {"optimizer.params.lr": RATE, "bf16.enabled": "true", "fp16.enabled": "false"}
    fine_tune(folder / "tasks" / task / name, task, tasks, seeds, keys, deepspeed)


def write(folder: Path, tasks: Path, seeds: int) -> None:
    """Collect the test scores of every seed, and write figures, plot and table of what is complete."""
    found = {}
    for file in TASKS:
        task = open_task(str(file))
        runs = {name: folder / "tasks" / task.name / name for name in BEGINNINGS}
        if scores := {name: test_scores(run, seeds) for name, run in runs.items() if is_fine_tuned(run, seeds)}:
            bare = {name: row[task.metric] for name, row in floors(task, read_data(task, tasks / task.name)).items()}
            found[task.name] = {"metric": task.metric, "scores": scores, "floors": bare}
    pretrained = [name for name in (*PRETRAINED, *BEGINNINGS) if (folder / name / "metrics.jsonl").exists()]
    costs = {name: {"updates": updates_of(folder, name), "seconds": seconds(folder, name)} for name in pretrained}
    write_json(RESULTS, {"about": about("torch", "deepspeed"), "tasks": found, "pretraining": costs, "epochs": EPOCHS})
    docs = ROOT / "docs/results.md"
    docs.write_text(show(found, docs.parent / "images", docs.read_text(encoding="utf-8")), encoding="utf-8")


def show(found: dict[str, Any], images: Path, text: str) -> str:
    """Draw the plot, and return the text with the table of each task's scores."""
    draw(found, images / "transfer.svg")
    return put(text, "transfer", table(found))


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
