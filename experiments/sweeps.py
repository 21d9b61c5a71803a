"""Figures 1, 2 and 4 of the paper in small: how much each setting matters, and which learning rates are too high.

    python experiments/sweeps.py [--workers 1] [--seeds 3] [--updates 600] [--only depth ...] [--tasks FOLDER]

It sweeps the depth of the auxiliary, lambda of joint training, tau of Fast-ELECTRA, and the peak learning rate; see
SWEEPS in variants.py. All runs are in runs/sweeps, the auxiliaries are trained once and shared. Started again, the
command keeps the runs that are complete and resumes the others. After each sweep it writes
experiments/results/sweeps.json, and the plots and tables of docs/results.md. FOLDER has a folder for each of two tasks,
rt_sentiment and vader_intensity, on which some of the models are then fine-tuned.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import plots
from curricula import RESULTS, begin_workers, collect, pretrain_and_score, train_all
from fine_tuned import FILES, fine_tune, is_fine_tuned, test_scores
from variants import JUDGE, ROOT, SWEEPS, SWEPT, VARIANTS, Study

from fast_electra.files import read_json, write_json
from fast_electra.finetuning.tasks import open_task
from fast_electra.settings import UserError
from fast_electra.training.metrics import absurd_loss, read_metrics

BIN = 20  # updates whose mean loss is one point of a plot
TASKS = {"rt_sentiment": 4, "vader_intensity": 2}  # and their epochs
FINE_TUNED = ("random", "fast-0", "fixed-0", "joint-0")
FINE_TUNING_SEEDS = 5
# With 384 tokens a text is long. So small a model learns the training set only without dropout.
FINE_TUNING = {"sequence_length": 192, "dropout": 0}
FINE_TUNING_RATE = {"optimizer.params.lr": 0.001, "bf16.enabled": "true", "fp16.enabled": "false"}


def train_or_diverge(study: Study, name: str, seed: int) -> str:
    """Train and score a variant. If its loss or gradients stay not finite, that is its result: keep it."""
    file = study.run(name, seed) / "scores.json"
    if not (file.exists() and "diverged" in read_json(file)):
        try:
            return pretrain_and_score(study, name, seed)
        except UserError as error:
            if "not finite, up to update" not in str(error):
                raise
            write_json(file, {"scores": {str(study.updates): {}}, "diverged": str(error)})
    return f"{name} seed {seed}: {read_json(file)['diverged']}"


def main() -> None:
    """Train and score one sweep after the other, and write after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1, help="number of processes, with one thread each; default: 1")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds; default: 3")
    parser.add_argument("--updates", type=int, default=600, help="number of updates of each main model; default: 600")
    parser.add_argument("--only", nargs="+", choices=SWEEPS, default=list(SWEEPS), metavar="NAME", help="sweeps to do")
    parser.add_argument("--tasks", type=Path, metavar="FOLDER", help="fine-tune on the tasks in this folder")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "sweeps", help="default: runs/sweeps")
    parser.add_argument("--results", type=Path, metavar="FILE", help="write the figures there, and nothing to docs/")
    given = parser.parse_args()
    shared = (JUDGE, "auxiliary_1", "auxiliary_2", "auxiliary_3")
    study = Study(given.folder, given.updates, shared, traced=("fast", "fixed", "joint"), checkpoints=6)
    seeds = list(range(given.seeds))
    with begin_workers(study, given.workers) as workers:
        for sweep in given.only:
            train_all(study, variants_of([sweep]), seeds, workers, train_or_diverge)
            done = [name for name in SWEEPS if all(is_scored(study, n, seeds) for n in variants_of([name]))]
            names = variants_of(done)
            result = collect(study, names, seeds, workers, references=("untrained",))
            result |= {"sweeps": done, "bin": BIN}
            result["runs"] = {n: {str(seed): course(study, n, seed) for seed in seeds} for n in names}
            write(result | {"tasks": fine_tuned(study.folder)}, given.results)
    for task, epochs in TASKS.items() if given.tasks else ():
        for name in FINE_TUNED:
            keys = FINE_TUNING | {
                "pretrained": study.folder / ("fast-0" if name == "random" else name),
                "tokenizer": study.folder / "tokenizer",
                "epochs": epochs,
            }
            run = study.folder / "tasks" / task / name
            fine_tune(run, task, given.tasks, FINE_TUNING_SEEDS, keys, FINE_TUNING_RATE)
        write(result | {"tasks": fine_tuned(study.folder)}, given.results)


def variants_of(sweeps: list[str]) -> list[str]:
    """Return the names of all variants of some sweeps, each once."""
    lines = [line for sweep in sweeps for line in SWEEPS[sweep].lines.values()]
    return list(dict.fromkeys(name for line in lines for name in line.values()))


def is_scored(study: Study, name: str, seeds: list[int]) -> bool:
    """Return whether a variant has its scores with every seed."""
    return all((study.run(name, seed) / "scores.json").exists() for seed in seeds)


def course(study: Study, name: str, seed: int) -> dict[str, Any]:
    """Return the loss of detection in the course of a run, what went wrong, and how good its auxiliary was."""
    run, depth = study.run(name, seed), (VARIANTS | SWEPT)[name].depth
    rows = read_metrics(run)[0]
    losses = [row.get("rtd_loss", row["loss"]) for row in rows]
    bins = [[x for x in losses[i : i + BIN] if x is not None] for i in range(0, len(losses), BIN)]
    auxiliary = study.run(f"auxiliary_{depth}", seed) if depth else run
    evaluated = [row["heldout_mlm_accuracy"] for row in read_metrics(auxiliary)[1] if "heldout_mlm_accuracy" in row]
    return {
        "losses": [sum(part) / len(part) if part else None for part in bins],
        "skipped": sum(row["skipped"] for row in rows),
        "diverged": len(rows) < study.updates or bool(absurd_loss(run)),
        "auxiliary_accuracy": evaluated[-1] if evaluated else None,
    }


def fine_tuned(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Return, for each task whose models are all fine-tuned, the test scores of every seed of each model."""
    found = {}
    for task in TASKS:
        runs = {name: folder / "tasks" / task / name for name in FINE_TUNED}
        if all(is_fine_tuned(run, FINE_TUNING_SEEDS) for run in runs.values()):
            scores = {name: test_scores(run, FINE_TUNING_SEEDS) for name, run in runs.items()}
            found[f"{task}, {open_task(str(FILES[task])).metric}"] = scores
    return found


def write(result: dict[str, Any], file: Path | None) -> None:
    """Write the figures; without a file, to their place, and all plots and tables too."""
    place = file or RESULTS.with_name("sweeps.json")
    place.parent.mkdir(parents=True, exist_ok=True)
    write_json(place, result)
    if file is None:
        plots.write_all(RESULTS, ROOT / "docs")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
