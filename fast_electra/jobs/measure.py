"""Table 7 of the paper from one config: joint training, Fast-ELECTRA online and offline, measured in one run (E.1).

All three train the config's main model on its batches. *Joint* trains an auxiliary beside it, as deep as the frozen
one. *Online* is the config as it is. *Offline* reads draws from a store, which is written only for this measurement.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fast_electra import parts, recipes
from fast_electra.batch import ceil_div
from fast_electra.config import Config, RunConfig
from fast_electra.corpus.corpus import Corpus
from fast_electra.cost import measure as measurement
from fast_electra.cost import methods
from fast_electra.cost.estimate import auxiliary_settings, check_machine
from fast_electra.cost.flops import BACKWARD, RECOMPUTATION, Lengths
from fast_electra.cost.memory import reduction_buckets
from fast_electra.cost.methods import Job
from fast_electra.cost.tables import table
from fast_electra.files import write_json
from fast_electra.jobs import launcher, preprocess
from fast_electra.model.files import describe, save_model
from fast_electra.model.heads import MaskedLanguageModel
from fast_electra.objectives.rtd import RTD
from fast_electra.replacement.auxiliary import Auxiliary
from fast_electra.settings import UserError
from fast_electra.training.engines import Ranks, forward_flops, stop_ranks, sum_over_ranks, wait_for_ranks
from fast_electra.training.graphs import ReplayedModel
from fast_electra.training.machine import device_memory

MOST = 1_000_000  # updates, and turns


@dataclass(frozen=True)
class Options:
    """How much is measured: `rounds` turns of each method, of `updates` updates after `warmup` others."""

    updates: int
    warmup: int
    rounds: int
    json: Path | None = None  # a file for all figures
    trace: Path | None = None  # a folder for torch.profiler's traces of each method
    flops: bool = False  # whether DeepSpeed's flops profiler counts an online update


def main(config: Config, path: str, overrides: list[str], options: Options) -> None:
    """Join the launcher's process group, measure, print the table, and leave the group.

    The config is of objective rtd. Its path and overrides are for messages and the record.
    """
    for name, least in (("updates", 1), ("warmup", 0), ("rounds", 1)):
        if not least <= getattr(options, name) <= MOST:
            raise UserError(f"--{name} {getattr(options, name)}: give {least} or more, and at most {MOST:,}")
    if config.run.objective != "rtd":
        what = f"{path} has objective {config.run.objective}"
        raise UserError(f"{what}: name a config of objective rtd; joint follows from it")
    if config.run.vocabulary_size is None:
        raise UserError(
            f"{path} trains an existing model, and this compares with joint training, which is for our own: leave out "
            "fast_electra.model.huggingface. A run's metrics.jsonl has its tokens_per_second"
        )
    if not config.run.replacement.from_auxiliary:
        raise UserError(
            f"fast_electra.replacement.distribution {config.run.replacement.distribution} needs no auxiliary model, "
            "and this measures the cost of one: leave the key out"
        )
    check_machine(config, device_memory())
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
    stop_ranks()


@contextmanager
def _scratch(parent: Path, ranks: Ranks) -> Iterator[Path]:
    """Make a folder beside the run's, where all ranks see it, and remove it at the end."""
    number = torch.tensor(os.getpid() if ranks.rank == 0 else 0, device=ranks.device)
    folder = parent / f".measure-{int(sum_over_ranks(number))}"
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

    last = max(options.warmup + options.updates, measurement.MEMORY_UPDATES, measurement.TRACED_UPDATES)  # of any turn
    configs, corpus, source = _prepare(config, last, folder, ranks)
    builds = {name: partial(parts.build, own, ranks, corpus) for name, own in configs.items()}
    measured = measurement.measure(builds, ranks, options.updates, options.warmup, options.rounds, tell)
    if options.trace is not None:
        for method, build in builds.items():
            measurement.trace(build, ranks, options.trace / f"{method}.json")
        tell(f"traces: {options.trace}")
    online, machine = configs["online"], measurement.machine(ranks)
    auxiliary, _ = auxiliary_settings(online.run)
    sequences, micro_batch = online.sequences, online.deepspeed["train_micro_batch_size_per_gpu"]
    numbers, _ = corpus.train.order(online.run.seed, 0, last * sequences)
    of_updates, fraction = corpus.train.lengths(numbers).view(last, sequences), online.run.corruption.mask_fraction
    timed = Lengths.of(of_updates[options.warmup : options.warmup + options.updates].flatten(), fraction)
    weighed = of_updates[: measurement.MEMORY_UPDATES].reshape(-1, micro_batch)
    heaviest = Lengths.of(weighed[weighed.sum(1).argmax()], fraction)
    job = methods.job_of(online, auxiliary, timed)
    job = replace(job, batch=job.batch._replace(lengths=heaviest))
    lengths = {"length": online.run.corpus.sequence_length, "mean_length": timed.mean}
    result = {
        "machine": machine,
        "turns": {"rounds": options.rounds, "updates": options.updates, "warmup": options.warmup},
        "batch": {"sequences": job.sequences, "per_process": job.batch.sequences, **lengths},
        "dtype": online.dtype,
        "auxiliary": f"{auxiliary.layers} layer(s) of {auxiliary.hidden_size}, {online.auxiliary_dtype}, {source}",
        "methods": _figures(measured, job, machine),
    }
    if options.flops:
        result["deepspeed_flops"] = _deepspeed_flops(builds["online"], job)
    return result


def _prepare(config: Config, last: int, folder: Path, ranks: Ranks) -> tuple[dict[str, Config], Corpus, str]:
    """Write the store. Return the config of each method, the corpus, and the origin of the frozen auxiliary.

    Every config ends at update `last`, so the store is no longer than the measured updates need.
    """
    short = config.changed(updates=last, evaluation={"sequences": 1}, replacement={"store": None})
    corpus = parts.open_run_corpus(short.run, ranks)
    per = short.run.curriculum.per if short.run.replacement.is_linear else "epoch"
    online = short.changed(curriculum={"per": per})
    assert online.run.auxiliary is not None
    if online.run.auxiliary.huggingface is not None:
        source = f"of Hugging Face: {online.run.auxiliary.huggingface}"
    else:
        auxiliary_run, source = _auxiliary(short.run, corpus, folder, ranks)
        online = online.changed(auxiliary={"run": str(auxiliary_run)})
    auxiliary, _ = auxiliary_settings(online.run)
    store = folder / "store"
    preprocess.write(online, store, ranks, ceil_div(last * online.sequences, ranks.world))
    joint = recipes.recipe(config.run.recipe, "joint")["joint"] | {"auxiliary_layers": auxiliary.layers}
    configs = {
        "joint": online.changed(objective="joint", joint=joint),
        "online": online,
        "offline": online.changed(replacement={"store": str(store)}),
    }
    return configs, corpus, source


def _auxiliary(run: RunConfig, corpus: Corpus, folder: Path, ranks: Ranks) -> tuple[Path, str]:
    """Return the run folder of the config's auxiliary, or of one with random weights in its place; and its origin."""
    assert run.auxiliary is not None and run.auxiliary.run is not None
    trained = Path(run.auxiliary.run)
    if describe(trained / "model"):
        return trained, f"trained: {trained}"
    settings, _ = auxiliary_settings(run)
    if ranks.rank == 0:
        weights = MaskedLanguageModel(settings, run.seed).state_dict()
        save_model(folder / "auxiliary" / "model", "mlm", settings, weights, tokenizer=corpus.tokenizer.hash)
    wait_for_ranks()
    return folder / "auxiliary", f"untrained, because {trained} holds no model: it costs the same"


def _figures(measured: dict[str, measurement.Measured], job: Job, machine: dict[str, Any]) -> dict[str, Any]:
    """Return for each method what was measured, its ratio to joint training, and both as predicted."""
    gpu, world = measurement.known_gpu(machine["device"]), machine["processes"]
    figures: dict[str, Any] = {}
    for method, (turns, memory) in measured.items():
        rows = [row for turn in turns for row in turn.rows]
        highest = methods.highest_moment(job, method)
        predicted = {  # as `fast-electra estimate`, for these batches
            "flops_per_update": methods.update_flops(job, method),
            "peak_bytes": highest.bytes,
            "highest_moment": highest.name,
            "bytes": highest.terms,
        }
        own = figures[method] = {
            "seconds": [turn.seconds for turn in turns],
            "cpu_seconds": [turn.cpu_seconds for turn in turns],
            "skipped_updates": sum(row["skipped"] for row in rows),  # as while fp16's loss scale is sought
            "peak_bytes_of_ranks": [of_rank.peak for of_rank in memory],
            "peak_bytes": sum(of_rank.peak for of_rank in memory) / world,  # averaged over ranks, as in the paper
            "held_bytes": sum(of_rank.held for of_rank in memory) / world,
            "bucket_bytes": sum(reduction_buckets(methods.trained_parameters(job, method), job.zero).values()),
            "predicted": predicted,
        }
        joint = figures["joint"]
        for clock in ("seconds", "cpu_seconds"):
            own[f"{clock}_per_update"] = _spread([second for turn in own[clock] for second in turn])
            own[f"{clock}_ratio"] = _spread(measurement.ratios(own[clock], joint[clock]))
        seconds = own["seconds_per_update"]["median"]
        speed = predicted["flops_per_update"] / seconds / world
        own |= {
            "seconds_ratio_predicted": predicted["flops_per_update"] / joint["predicted"]["flops_per_update"],
            "peak_ratio": own["peak_bytes"] / joint["peak_bytes"],
            "peak_ratio_predicted": predicted["peak_bytes"] / joint["predicted"]["peak_bytes"],
            "tokens_per_second": sum(row["tokens"] for row in rows) / len(rows) / seconds,
            "flops_per_second_and_process": speed,
            "mfu": None if gpu is None else speed / gpu.peak(job.zero.dtype),
        }
    return figures


def _spread(values: list[float]) -> dict[str, float]:
    lowest, lower, median, upper, highest = np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist()
    return {"median": median, "lower": lower, "upper": upper, "lowest": lowest, "highest": highest}


def _deepspeed_flops(build: measurement.Build, job: Job) -> dict[str, dict[str, float]]:
    """Return the forward FLOPs of one sequence in an online update: by DeepSpeed's profiler, and as predicted."""
    run = build()
    assert isinstance(run.objective, RTD) and isinstance(run.objective.distribution, Auxiliary)
    auxiliary = run.objective.distribution.model
    assert isinstance(auxiliary, ReplayedModel)
    models = {"main model": run.engine.module, "auxiliary": auxiliary.model}
    counted = forward_flops(models, lambda: measurement.finished_update(run, 1))
    lengths_B = torch.cat([batch.layout.lengths_B for batch in run.loader.batch(0)])
    own = replace(job, lengths=Lengths.of(lengths_B, run.loader.mask_fraction))
    figures = {}
    for name, terms in methods.sequence_flops(own, "online").items():
        forward = sum(value for term, value in terms.items() if term not in (BACKWARD, RECOMPUTATION))
        figures[name] = {"deepspeed": counted[name] / len(lengths_B), "predicted": forward}
    return figures
