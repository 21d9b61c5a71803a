"""Table 7 of the paper from one config: joint training, Fast-ELECTRA online and offline, measured in one run (E.1).

All three train the config's main model on its batches. *Joint* trains an auxiliary beside it, as deep as the frozen
one. *Online* is the config as it is. *Offline* reads draws from a store, which is written only for this measurement.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fast_electra import parts, recipes
from fast_electra.batch import ceil_div
from fast_electra.config import Config, RunConfig
from fast_electra.corpus.corpus import Corpus
from fast_electra.cost import measure as measurement
from fast_electra.cost import methods
from fast_electra.cost.estimate import auxiliary_settings
from fast_electra.cost.flops import BACKWARD, RECOMPUTATION
from fast_electra.cost.measure import MEMORY_UPDATES, TRACED_UPDATES, Build, Measured, ratios
from fast_electra.cost.memory import reduction_buckets
from fast_electra.cost.methods import METHODS, Job
from fast_electra.cost.tables import table
from fast_electra.files import write_json
from fast_electra.jobs import launcher, preprocess
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.files import describe, save_model
from fast_electra.model.heads import MaskedLanguageModel
from fast_electra.objectives.rtd import RTD
from fast_electra.replacement.auxiliary import Auxiliary
from fast_electra.settings import UserError
from fast_electra.training import engines
from fast_electra.training.engines import Ranks, wait_for_ranks
from fast_electra.training.graphs import ReplayedModel


@dataclass(frozen=True)
class Options:
    """How much is measured: `rounds` turns of each method, of `updates` updates after `warmup` others."""

    updates: int
    warmup: int
    rounds: int
    json: Path | None = None  # a file for all figures
    trace: Path | None = None  # a folder for torch.profiler's traces of each method
    flops: bool = False  # whether DeepSpeed's flops profiler counts an online update

    def check(self) -> None:
        """Raise UserError for numbers that are too small."""
        for name, least in (("updates", 1), ("warmup", 0), ("rounds", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} {getattr(self, name)}: give {least} or more")

    @property
    def last(self) -> int:
        """The last update that any turn does."""
        return max(self.warmup + self.updates, MEMORY_UPDATES, TRACED_UPDATES)


def main(config: Config, path: str, overrides: list[str], options: Options) -> None:
    """Join the launcher's process group, measure, print the table, and leave the group.

    The config is of objective rtd. Its path and overrides are for messages and the record.
    """
    options.check()
    _check(config.run, path)
    ranks = launcher.begin(config)
    with _scratch(Path(config.run.run).parent, ranks) as folder:
        result = {"config": path, "overrides": overrides, **_measure(config, options, folder, ranks)}
        wait_for_ranks()
    if ranks.rank == 0:
        print(table(result), flush=True)
        if options.json is not None:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            write_json(options.json, result)
            print(f"all figures: {options.json}", flush=True)
    engines.stop_ranks()


def _check(run: RunConfig, path: str) -> None:
    if run.objective != "rtd":
        raise UserError(f"{path} has objective {run.objective}: name a config of objective rtd; joint follows from it")
    if not run.replacement.from_auxiliary:
        raise UserError(
            f"fast_electra.replacement.distribution {run.replacement.distribution} needs no auxiliary model, and this "
            "measures the cost of one: leave the key out"
        )


@contextmanager
def _scratch(parent: Path, ranks: Ranks) -> Iterator[Path]:
    """Make a folder beside the run's, where all ranks see it, and remove it at the end."""
    number = torch.tensor(os.getpid() if ranks.rank == 0 else 0, device=ranks.device)
    folder = parent / f".measure-{int(engines.sum_over_ranks(number))}"
    try:
        if ranks.rank == 0:
            folder.mkdir(parents=True)
        wait_for_ranks()
        yield folder
    finally:
        if ranks.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)


def _measure(config: Config, options: Options, folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Return all figures, as JSON."""

    def tell(line: str) -> None:
        if ranks.rank == 0:
            print(f"measuring: {line}", flush=True)

    configs, corpus, auxiliary, source = _prepare(config, options, folder, ranks)
    builds: dict[str, Build] = {name: partial(parts.build, own, ranks, corpus) for name, own in configs.items()}
    measured = measurement.measure(builds, ranks, options.updates, options.warmup, options.rounds, tell)
    if options.trace is not None:
        for method, build in builds.items():
            measurement.trace(build, ranks, options.trace / f"{method}.json")
        tell(f"traces: {options.trace}")
    online = configs["online"]
    job = methods.job_of(online, auxiliary)
    result = {
        "machine": measurement.machine(ranks),
        "turns": {"rounds": options.rounds, "updates": options.updates, "warmup": options.warmup},
        "batch": {"sequences": job.sequences, "per_process": job.batch.sequences, "length": job.batch.length},
        "dtype": online.dtype,
        "auxiliary": f"{auxiliary.layers} layer(s) of {auxiliary.hidden_size}, {online.auxiliary_dtype}, {source}",
        "methods": _figures(measured, job, ranks),
    }
    if options.flops:
        result["deepspeed_flops"] = _deepspeed_flops(builds["online"], job, ranks)
    return result


def _prepare(
    config: Config, options: Options, folder: Path, ranks: Ranks
) -> tuple[dict[str, Config], Corpus, EncoderSettings, str]:
    """Write the store. Return the config of each method, the corpus, the frozen auxiliary's sizes and its origin.

    Every config has only the updates that are measured, so the store is no longer than they need.
    """
    short = config.changed(updates=options.last, evaluation={"sequences": 1}, replacement={"store": None})
    corpus = parts.open_run_corpus(short.run, ranks)
    auxiliary_run, source = _auxiliary(short.run, corpus, folder, ranks)
    per = short.run.curriculum.per if short.run.replacement.is_linear else "epoch"
    online = short.changed(auxiliary={"run": str(auxiliary_run)}, curriculum={"per": per})
    auxiliary, _ = auxiliary_settings(online.run)
    store = folder / "store"
    preprocess.write(online, store, ranks, ceil_div(options.last * online.sequences, ranks.world))
    joint = recipes.recipe(config.run.recipe, "joint")["joint"] | {"auxiliary_layers": auxiliary.layers}
    configs = {
        "joint": online.changed(objective="joint", joint=joint),
        "online": online,
        "offline": online.changed(replacement={"store": str(store)}),
    }
    assert tuple(configs) == METHODS
    return configs, corpus, auxiliary, source


def _auxiliary(run: RunConfig, corpus: Corpus, folder: Path, ranks: Ranks) -> tuple[Path, str]:
    """Return the run folder of the config's auxiliary, or of one with random weights in its place; and its origin."""
    assert run.auxiliary is not None and run.auxiliary.run is not None
    trained = Path(run.auxiliary.run)
    if describe(trained / "model"):
        return trained, f"trained: {trained}"
    settings, _ = auxiliary_settings(run)
    if ranks.rank == 0:
        model = MaskedLanguageModel(settings, run.seed)
        weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
        save_model(folder / "auxiliary" / "model", "mlm", settings, weights, tokenizer=corpus.tokenizer.hash)
    wait_for_ranks()
    return folder / "auxiliary", f"untrained, because {trained} holds no model: it costs the same"


def _figures(measured: dict[str, Measured], job: Job, ranks: Ranks) -> dict[str, Any]:
    """Return for each method what was measured, its ratio to joint training, and both as predicted."""
    gpu = measurement.known_gpu(torch.cuda.get_device_name(ranks.device)) if ranks.device.type == "cuda" else None
    peak = None if gpu is None else gpu.flops_32 if job.zero.dtype == "fp32" else gpu.flops_16
    figures: dict[str, Any] = {}
    for method, (turns, memory) in measured.items():
        rows = [row for turn in turns for row in turn.rows]
        predicted = _predicted(job, method)
        own = figures[method] = {
            "seconds": [turn.seconds for turn in turns],
            "cpu_seconds": [turn.cpu_seconds for turn in turns],
            "skipped_updates": sum(row["skipped"] for row in rows),  # as while fp16's loss scale is sought
            "peak_bytes_of_ranks": [of_rank.peak for of_rank in memory],
            "peak_bytes": sum(of_rank.peak for of_rank in memory) / ranks.world,  # averaged over ranks, as in the paper
            "held_bytes": sum(of_rank.held for of_rank in memory) / ranks.world,
            "bucket_bytes": sum(reduction_buckets(methods.trained_parameters(job, method), job.zero).values()),
            "predicted": predicted,
        }
        joint = figures["joint"]
        for clock in ("seconds", "cpu_seconds"):
            own[f"{clock}_per_update"] = _spread([second for turn in own[clock] for second in turn])
            own[f"{clock}_ratio"] = _spread(ratios(own[clock], joint[clock]))
        seconds = own["seconds_per_update"]["median"]
        speed = predicted["flops_per_update"] / seconds / ranks.world
        own |= {
            "seconds_ratio_predicted": predicted["flops_per_update"] / joint["predicted"]["flops_per_update"],
            "peak_ratio": own["peak_bytes"] / joint["peak_bytes"],
            "peak_ratio_predicted": predicted["peak_bytes"] / joint["predicted"]["peak_bytes"],
            "tokens_per_second": sum(row["tokens"] for row in rows) / len(rows) / seconds,
            "flops_per_second_and_process": speed,
            "mfu": None if peak is None else speed / peak,
        }
    return figures


def _spread(values: list[float]) -> dict[str, float]:
    quartiles = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    lower, median, upper = quartiles.tolist()
    return {"median": median, "lower": lower, "upper": upper, "lowest": min(values), "highest": max(values)}


def _predicted(job: Job, method: str) -> dict[str, Any]:
    """Return what `fast-electra estimate` says: FLOPs of an update, and a device's bytes at the highest moment."""
    highest = methods.highest_moment(job, method)
    return {
        "flops_per_update": methods.update_flops(job, method),
        "peak_bytes": highest.bytes,
        "highest_moment": highest.name,
        "bytes": highest.terms,
    }


def _deepspeed_flops(build: Build, job: Job, ranks: Ranks) -> dict[str, dict[str, float]]:
    """Return the forward FLOPs of one sequence in an online update: by DeepSpeed's profiler, and as predicted."""
    run = build()
    assert isinstance(run.objective, RTD) and isinstance(run.objective.distribution, Auxiliary)
    auxiliary = run.objective.distribution.model
    assert isinstance(auxiliary, ReplayedModel)
    models = {"main model": run.engine.module, "auxiliary": auxiliary.model}
    counted = engines.forward_flops(models, lambda: measurement.finished_update(run, 1))
    figures = {}
    for name, terms in methods.sequence_flops(job, "online").items():
        forward = sum(value for term, value in terms.items() if term not in (BACKWARD, RECOMPUTATION))
        figures[name] = {"deepspeed": counted[name] * ranks.world / job.sequences, "predicted": forward}
    return figures
