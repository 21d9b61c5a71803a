"""Models fine-tuned on the tasks of experiments/tasks/, with several seeds, and their scores on the test sets."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from floors import TASKS

from fast_electra.files import read_json
from fast_electra.training.machine import cpu_name

ROOT = Path(__file__).parent.parent
FILES = {file.stem: file for file in TASKS}  # of each task, by its name


def fine_tune(run: Path, task: str, tasks: Path, seeds: int, keys: dict[str, Any], deepspeed: dict[str, Any]) -> None:
    """Fine-tune a model on a task with every seed, or with those that are left.

    Args:
        run: folder of the runs; its log lies beside it. If its name is `random`, the model gets new weights.
        task: name of the task, and of the folder of its data.
        tasks: where that folder is.
        seeds: number of seeds.
        keys: keys of the section `fast_electra`.
        deepspeed: other keys of ds_configs/finetune.json.
    """
    if not is_fine_tuned(run, seeds):
        run.parent.mkdir(parents=True, exist_ok=True)
        own = {"run": run, "initialization": "random" if run.name == "random" else "pretrained"}
        values = {f"fast_electra.{key}": value for key, value in (keys | own).items()} | deepspeed
        what = ("--task", FILES[task], "--data", tasks / task, "--seeds", seeds)
        config = ("--deepspeed_config", ROOT / "ds_configs/finetune.json")
        command("launch/finetune.py", *config, *what, *settings(values), log=run.with_suffix(".log"))
    print(f"{time.strftime('%H:%M')} fine-tuned {run.name} on {task}", flush=True)


def is_fine_tuned(run: Path, seeds: int) -> bool:
    """Return whether a model is fine-tuned with every seed."""
    return all((place / "scores.json").exists() for place in places(run, seeds))


def test_scores(run: Path, seeds: int) -> list[float]:
    """Return the task's metric on the test set, for each seed that is complete."""
    files = [place / "scores.json" for place in places(run, seeds)]
    return [read_json(file)["test"]["test_score"] for file in files if file.exists()]


def places(run: Path, seeds: int) -> list[Path]:
    """Return the folder of each seed."""
    return [run / f"seed-{seed}" for seed in range(seeds)] if seeds > 1 else [run]


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


def about(*packages: str) -> dict[str, Any]:
    """Return machine, date, and versions of packages."""
    machine = {"machine": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()}
    return machine | {name: version(name) for name in packages} | {"date": f"{datetime.now(UTC):%Y-%m-%d}"}
