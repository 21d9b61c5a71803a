"""Small versions of the paper's ablations: one tiny model for each distribution, schedule and augmentation.

    python experiments/curricula.py [--workers 1] [--seeds 3] [--updates 300] [--only NAME ...]

All runs are in runs/experiments. Started again, the command keeps the runs that are complete and resumes the others.
When every variant has been trained with every seed, it writes the figures to experiments/results/, and the plots and
tables to docs/.
"""

import argparse
import json
import multiprocessing
import os
import platform
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import plots
import probes
import torch
from variants import AUXILIARY_UPDATES, BATCH, JUDGE, JUDGE_SEED, ROOT, SWEPT, VARIANTS, VOCABULARY, Study

from fast_electra.files import write_json
from fast_electra.hosts import operators
from fast_electra.jobs.pretrain import train
from fast_electra.model.files import load_model
from fast_electra.model.heads import Discriminator, MaskedLanguageModel
from fast_electra.parts import open_run_corpus
from fast_electra.settings import UserError
from fast_electra.text.build import build_shards
from fast_electra.text.train_tokenizer import train_tokenizer
from fast_electra.training import checkpoint
from fast_electra.training.checkpoint_files import read_checkpoint_file
from fast_electra.training.engines import Ranks, start_ranks
from fast_electra.training.machine import cpu_name

RESULTS = ROOT / "experiments" / "results" / "curricula.json"
REFERENCES = ("untrained", "auxiliary_1", "auxiliary_3")  # scored next to the variants


Job = Callable[[Study, str, int], str]


# --- in the worker processes ------------------------------------------------------------------------------------------

_ranks: Ranks


def begin() -> None:
    """Start a DeepSpeed process group that holds this worker alone. Each worker calls it once."""
    global _ranks
    torch.set_num_threads(1)
    with socket.socket() as listener:
        listener.bind(("", 0))
        port = listener.getsockname()[1]
    os.environ.update(MASTER_PORT=str(port), RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    _ranks = start_ranks()


def pretrain(study: Study, name: str, seed: int) -> None:
    """Train a model, or the rest of its updates."""
    train(study.load(name, seed), _ranks)


def pretrain_and_score(study: Study, name: str, seed: int) -> str:
    """Train a variant, score it, and keep the scores in its run folder. Return a line to show."""
    loaded = study.load(name, seed)
    file = study.run(name, seed) / "scores.json"
    train(loaded, _ranks)
    inputs, settings = _inputs(study)
    try:
        kept = json.loads(file.read_text())
    except FileNotFoundError:
        kept = {}
    if kept.get("settings") != settings:
        model, _ = load_model(study.run(name, seed) / "model", "rtd", "")
        kept = {"settings": settings, "scores": {str(study.updates): probes.score(model, inputs)}}
        for update in range(loaded.run.checkpoint.every, study.updates, loaded.run.checkpoint.every):
            folder = study.run(name, seed) / "checkpoints" / checkpoint.name(update)
            state = read_checkpoint_file(folder / "mp_rank_00_model_states.pt")
            own = {n.removeprefix("main."): w for n, w in state["module"].items() if not n.startswith("auxiliary.")}
            model.load_state_dict(own)  # the run is in fp32, so these are its exact weights
            kept["scores"][str(update)] = probes.score(model, inputs)
        write_json(file, kept)
    return f"{name} seed {seed}: {_shown(kept['scores'][str(study.updates)])}"


def score_reference(study: Study, name: str, seed: int) -> probes.Figures:
    """Score the untrained main model of a seed, or the encoder of an auxiliary."""
    model: Discriminator | MaskedLanguageModel
    if name == "untrained":
        model = Discriminator.new(study.load("fast", seed).run.model, seed)
    else:
        model, _ = load_model(study.run(name, seed) / "model", "mlm", "")
    return probes.score(model, _inputs(study)[0])


def known(study: Study) -> tuple[probes.Figures, dict[str, Any]]:
    """Return the scores that need no model, and the settings of the probes."""
    inputs, settings = _inputs(study)
    return inputs.known, settings


@cache
def _inputs(study: Study) -> tuple[probes.Inputs, dict[str, Any]]:
    corpus = open_run_corpus(study.load(JUDGE, JUDGE_SEED).run)
    assert corpus.heldout is not None
    judge, description = load_model(study.run(JUDGE, JUDGE_SEED) / "model", "mlm", "")
    settings = probes.SETTINGS | {"judge": description["hash"], "corpus": corpus.hash}
    return probes.prepare(corpus.train, corpus.heldout, judge), settings


def _shown(scores: probes.Figures) -> str:
    return "  ".join(f"{key} {value:.4f}" for key, value in scores.items())


# --- the command ------------------------------------------------------------------------------------------------------


def main() -> None:
    """Train and score what the command line asks for, then write the results."""
    arguments = parse()
    study = Study(arguments.folder, arguments.updates)
    seeds, names = list(range(arguments.seeds)), arguments.only or list(VARIANTS)
    with begin_workers(study, arguments.workers) as workers:
        train_all(study, names, seeds, workers)
        results = arguments.results or (None if arguments.only else RESULTS)
        if results:
            results.parent.mkdir(parents=True, exist_ok=True)
            write_json(results, collect(study, names, seeds, workers))
        if not arguments.only:
            plots.write_all(RESULTS, ROOT / "docs")


def begin_workers(study: Study, count: int) -> ProcessPoolExecutor:
    """Make the corpus of a study, and return the processes that train."""
    operators.prepare_environment()
    operators.ensure()
    build_corpus(study.folder)
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=begin)


def train_all(
    study: Study, names: list[str], seeds: list[int], workers: ProcessPoolExecutor, job: Job = pretrain_and_score
) -> None:
    """Train and score variants with each seed, after the auxiliaries that they need. Exit if a run failed."""
    depths = sorted({(VARIANTS | SWEPT)[name].depth for name in names} - {0})
    wanted = [(f"auxiliary_{depth}", seed) for depth in depths for seed in seeds]
    auxiliaries = [(JUDGE, JUDGE_SEED), *(job for job in wanted if job[0] not in study.shared or job[1] == seeds[0])]
    for trained in [workers.submit(pretrain, study, *job) for job in auxiliaries]:
        trained.result()
    failed = 0
    # Seed by seed: all variants of the first seed can be compared while the other seeds train.
    for scored in [workers.submit(job, study, name, seed) for seed in seeds for name in names]:
        try:
            print(scored.result(), flush=True)
        except UserError as error:  # one run failed, e.g. it diverged; the others continue
            failed += 1
            sys.stderr.write(f"error: {error}\n")
    if failed:
        sys.exit(f"{failed} runs failed; the results are not written")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1, help="number of processes, with one thread each; default: 1")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds; default: 3")
    parser.add_argument("--updates", type=int, default=300, help="number of updates of each main model; default: 300")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, metavar="NAME", help="train and score only these")
    parser.add_argument("--results", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "experiments", help="default: runs/experiments")
    return parser.parse_args()


def build_corpus(folder: Path) -> None:
    """Build a tokenizer and shards from the corpus that ships, unless the folder has them."""
    if not (folder / "tokenizer" / "tokenizer.json").exists():
        train_tokenizer(["sample"], folder / "tokenizer", vocabulary=VOCABULARY)
    if not (folder / "shards" / "manifest.json").exists():
        build_shards(["sample"], folder / "tokenizer", folder / "shards", heldout=0.05)


def collect(
    study: Study,
    names: list[str],
    seeds: list[int],
    workers: ProcessPoolExecutor,
    references: tuple[str, ...] = REFERENCES,
) -> dict[str, Any]:
    """Return all figures, and everything that they depend on."""
    without_a_model, settings = workers.submit(known, study).result()
    beside = {
        name: {str(seed): workers.submit(score_reference, study, name, seed).result() for seed in seeds}
        for name in references
        if name == "untrained" or (study.run(name, seeds[0]) / "model").exists()
    }

    def read(name: str, seed: int, file: str) -> Any:
        return json.loads((study.run(name, seed) / file).read_text())

    runs = [*names, *(name for name in beside if name != "untrained")]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "updates": study.updates,
        "auxiliary_updates": AUXILIARY_UPDATES,
        "batch": BATCH,
        "vocabulary": VOCABULARY,
        "probes": settings,
        "without_a_model": without_a_model,
        "scores": {n: {str(seed): read(n, seed, "scores.json")["scores"] for seed in seeds} for n in names},
        "references": beside,
        "own_task": {
            n: {
                str(seed): read(n, seed, "model/model.json")["evaluation"]
                for seed in seeds
                if (study.run(n, seed) / "model").exists()  # a run that diverged has none
            }
            for n in runs
        },
    }


def machine() -> dict[str, Any]:
    """Describe the hardware and the versions that the figures depend on."""
    packages = {name: version(name) for name in ("torch", "deepspeed", "fast_electra")}
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "versions": {"python": platform.python_version()} | packages,
    }


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
