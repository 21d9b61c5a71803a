"""The paper's ablations in small: one tiny model, pre-trained under each distribution, schedule and augmentation.

    python experiments/curricula.py [--workers 1] [--seeds 3] [--updates 300] [--only NAME ...]

Everything stands under runs/experiments; what is complete there is kept, what was interrupted goes on. At the end, with
every variant and seed there, the figures are written to experiments/results/, the plots and tables to docs/.
"""

import argparse
import json
import multiprocessing
import os
import platform
import socket
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import plots
import probes
import torch
from variants import AUXILIARY_UPDATES, BATCH, JUDGE, JUDGE_SEED, ROOT, SHARED, VARIANTS, VOCABULARY, Plan

from fast_electra.corpus.build import build_shards
from fast_electra.corpus.tokenizer import train_tokenizer
from fast_electra.files import write_json
from fast_electra.jobs.pretrain import train
from fast_electra.model.files import load_model
from fast_electra.model.heads import Discriminator, MaskedLanguageModel
from fast_electra.parts import open_run_corpus
from fast_electra.settings import UserError
from fast_electra.training import checkpoint, operators
from fast_electra.training.engines import Ranks, start_ranks

RESULTS = ROOT / "experiments" / "results" / "curricula.json"
REFERENCES = ("untrained", "auxiliary_1", "auxiliary_3")  # scored beside the variants


# --- in the worker processes ------------------------------------------------------------------------------------------

_ranks: Ranks


def begin() -> None:
    """Once in each worker: DeepSpeed's process group of this one process."""
    global _ranks
    torch.set_num_threads(1)
    with socket.socket() as listener:
        listener.bind(("", 0))
        port = listener.getsockname()[1]
    os.environ.update(MASTER_PORT=str(port), RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    _ranks = start_ranks()


def pretrain(plan: Plan, name: str, seed: int) -> None:
    train(plan.load(name, seed), _ranks)


def pretrain_and_score(plan: Plan, name: str, seed: int) -> str:
    """One run and its figures, kept beside it in scores.json. Returns a line to show."""
    loaded = plan.load(name, seed)
    file = plan.run(name, seed) / "scores.json"
    train(loaded, _ranks)
    inputs, settings = _inputs(plan)
    try:
        kept = json.loads(file.read_text())
    except FileNotFoundError:
        kept = {}
    if kept.get("settings") != settings:
        model, _ = load_model(plan.run(name, seed) / "model", "rtd", "")
        kept = {"settings": settings, "scores": {str(plan.updates): probes.score(model, inputs)}}
        for update in range(loaded.run.checkpoint.every, plan.updates, loaded.run.checkpoint.every):
            folder = plan.run(name, seed) / "checkpoints" / checkpoint.name(update)
            state = torch.load(folder / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)
            model.load_state_dict(state["module"])  # fp32: these are the weights themselves
            kept["scores"][str(update)] = probes.score(model, inputs)
        write_json(file, kept)
    return f"{name} seed {seed}: {_shown(kept['scores'][str(plan.updates)])}"


def score_reference(plan: Plan, name: str, seed: int) -> probes.Figures:
    """The untrained main model of a seed, or the encoder of an auxiliary."""
    model: Discriminator | MaskedLanguageModel
    if name == "untrained":
        model = Discriminator.new(plan.load("fast", seed).run.model, seed)
    else:
        model, _ = load_model(plan.run(name, seed) / "model", "mlm", "")
    return probes.score(model, _inputs(plan)[0])


def facts(plan: Plan) -> tuple[probes.Figures, dict[str, Any]]:
    inputs, settings = _inputs(plan)
    return inputs.facts, settings


@cache
def _inputs(plan: Plan) -> tuple[probes.Inputs, dict[str, Any]]:
    corpus = open_run_corpus(plan.load(JUDGE, JUDGE_SEED).run)
    assert corpus.heldout is not None
    judge, description = load_model(plan.run(JUDGE, JUDGE_SEED) / "model", "mlm", "")
    settings = probes.SETTINGS | {"judge": description["hash"], "corpus": corpus.hash}
    return probes.prepare(corpus.train, corpus.heldout, judge), settings


def _shown(scores: probes.Figures) -> str:
    return "  ".join(f"{key} {value:.4f}" for key, value in scores.items())


# --- the command ------------------------------------------------------------------------------------------------------


def main() -> None:
    arguments = parse()
    plan = Plan(arguments.folder, arguments.updates)
    operators.prepare_environment()
    operators.ensure()
    build_corpus(plan.folder)
    seeds, names = list(range(arguments.seeds)), arguments.only or list(VARIANTS)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, context, initializer=begin) as workers:
        depths = sorted({VARIANTS[name].depth for name in names} - {0})
        wanted = [(f"auxiliary_{depth}", seed) for depth in depths for seed in seeds]
        auxiliaries = [(JUDGE, JUDGE_SEED), *(job for job in wanted if job[0] not in SHARED or job[1] == seeds[0])]
        for trained in [workers.submit(pretrain, plan, *job) for job in auxiliaries]:
            trained.result()
        failed = 0
        # Seed by seed, so that the first seeds of all can be looked at while the others run.
        for scored in [workers.submit(pretrain_and_score, plan, name, seed) for seed in seeds for name in names]:
            try:
                print(scored.result(), flush=True)
            except UserError as error:  # of one run, which diverged, say: the others go on
                failed += 1
                sys.stderr.write(f"error: {error}\n")
        if failed:
            sys.exit(f"{failed} runs failed; the results are not written")
        results = arguments.results or (None if arguments.only else RESULTS)
        if results:
            results.parent.mkdir(parents=True, exist_ok=True)
            write_json(results, collect(plan, names, seeds, workers))
        if not arguments.only:
            plots.write_all(RESULTS, ROOT / "docs")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each; default: 1")
    parser.add_argument("--seeds", type=int, default=3, help="default: 3")
    parser.add_argument("--updates", type=int, default=300, help="of each main model; default: 300")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, metavar="NAME", help="train and score these alone")
    parser.add_argument("--results", type=Path, metavar="FILE", help="write their figures there")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "experiments", help="default: runs/experiments")
    return parser.parse_args()


def build_corpus(folder: Path) -> None:
    """Tokenizer and shards of the corpus that ships, unless they are there."""
    if not (folder / "tokenizer" / "tokenizer.json").exists():
        train_tokenizer(["sample"], folder / "tokenizer", vocabulary=VOCABULARY)
    if not (folder / "shards" / "manifest.json").exists():
        build_shards(["sample"], folder / "tokenizer", folder / "shards", heldout=0.05)


def collect(plan: Plan, names: list[str], seeds: list[int], workers: ProcessPoolExecutor) -> dict[str, Any]:
    """All figures, and what they depend on."""
    known, settings = workers.submit(facts, plan).result()
    references = {
        name: {str(seed): workers.submit(score_reference, plan, name, seed).result() for seed in seeds}
        for name in REFERENCES
        if name == "untrained" or (plan.run(name, seeds[0]) / "model").exists()
    }

    def read(name: str, seed: int, file: str) -> Any:
        return json.loads((plan.run(name, seed) / file).read_text())

    runs = [*names, *(name for name in references if name != "untrained")]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "updates": plan.updates,
        "auxiliary_updates": AUXILIARY_UPDATES,
        "batch": BATCH,
        "vocabulary": VOCABULARY,
        "probes": settings,
        "without_a_model": known,
        "scores": {n: {str(seed): read(n, seed, "scores.json")["scores"] for seed in seeds} for n in names},
        "references": references,
        "own_task": {n: {str(seed): read(n, seed, "model/model.json")["evaluation"] for seed in seeds} for n in runs},
    }


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    packages = {name: version(name) for name in ("torch", "deepspeed", "fast_electra")}
    return {
        "cpu": next(names, platform.processor()),
        "cores": os.cpu_count(),
        "versions": {"python": platform.python_version()} | packages,
    }


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
