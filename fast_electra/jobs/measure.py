"""Table 7 of the paper from one config: joint training, Fast-ELECTRA online and offline, measured in one run (E.1).

All three train the config's main model on its batches. *Joint* trains an auxiliary beside it, as deep as the frozen
one. *Online* is the config as it is. *Offline* reads draws from a store, which is written for the occasion.
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
from fast_electra.cost.estimate import auxiliary_settings, job_of_config
from fast_electra.cost.flops import BACKWARD, RECOMPUTATION
from fast_electra.cost.measure import MEMORY_UPDATES, TRACED_UPDATES, Build, Measured, ratios
from fast_electra.cost.memory import reduction_buckets
from fast_electra.cost.methods import METHODS, Job, moments, sequence_flops, trained_parameters
from fast_electra.cost.tables import table
from fast_electra.files import write_json
from fast_electra.jobs import launcher, preprocess
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.files import describe, save_model
from fast_electra.model.heads import MaskedLanguageModel
from fast_electra.objectives.rtd import RTD
from fast_electra.replacement.auxiliary import Auxiliary
from fast_electra.settings import UserError
from fast_electra.training.engines import (
    Ranks,
    forward_flops,
    stop_ranks,
    sum_over_ranks,
    wait_for_ranks,
)
from fast_electra.training.graphs import ReplayedModel


@dataclass(frozen=True)
class Options:
    """How much is measured: `rounds` turns of each method, of `updates` updates after `warmup` others.

    Attributes:
        json: where to keep all figures.
        trace: a folder for torch.profiler's traces of each method.
        flops: whether DeepSpeed's flops profiler counts an online update.
    """

    updates: int
    warmup: int
    rounds: int
    json: Path | None = None
    trace: Path | None = None
    flops: bool = False

    def check(self) -> None:
        for name, least in (("updates", 1), ("warmup", 0), ("rounds", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} {getattr(self, name)}: give {least} or more")

    @property
    def last(self) -> int:
        """The last update that any turn does."""
        return max(self.warmup + self.updates, MEMORY_UPDATES, TRACED_UPDATES)


def main(config: Config, path: str, overrides: list[str], options: Options) -> None:
    """Join the launcher's process group, measure, print the table, and leave it.

    Args:
        config: of objective rtd.
        path: the file that it comes from, for messages and the record.
        overrides: likewise.
        options: how much is measured.
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
    stop_ranks()


def _check(run: RunConfig, path: str) -> None:
    if run.objective != "rtd":
        raise UserError(f"{path} has objective {run.objective}: name a config of objective rtd; joint follows from it")
    if not run.replacement.from_auxiliary:
        raise UserError(
            f"fast_electra.replacement.distribution {run.replacement.distribution} needs no auxiliary model, whose "
            "cost is what is measured here: leave it out"
        )


@contextmanager
def _scratch(parent: Path, ranks: Ranks) -> Iterator[Path]:
    """A folder beside the run's, where all ranks see it; removed at the end."""
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
    """Everything that is known in the end, as JSON."""

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
    job = job_of_config(online, auxiliary)
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
    """The config of each method, the corpus, sizes of the frozen auxiliary and where it comes from; writes the store.

    All are runs of just the updates that are measured, so that the store is no longer than they need.
    """
    short = config.changed(updates=options.last, evaluation={"sequences": 1}, replacement={"store": None})
    corpus = parts.open_run_corpus(short.run, ranks)
    auxiliary_run, source = _auxiliary(short.run, corpus, folder, ranks)
    per = short.run.curriculum.per if short.run.replacement.is_linear else "epoch"
    online = short.changed(auxiliary={"run": str(auxiliary_run)}, curriculum={"per": per})
    auxiliary, _ = auxiliary_settings(online.run)
    assert auxiliary is not None
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
    """The run folder of the config's auxiliary, or of one with random weights in its place; and what it is."""
    assert run.auxiliary is not None and run.auxiliary.run is not None
    trained = Path(run.auxiliary.run)
    if describe(trained / "model"):
        return trained, f"trained: {trained}"
    settings, _ = auxiliary_settings(run)
    assert settings is not None
    if ranks.rank == 0:
        model = MaskedLanguageModel(settings, run.seed)
        weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
        save_model(folder / "auxiliary" / "model", "mlm", settings, weights, tokenizer=corpus.tokenizer.hash)
    wait_for_ranks()
    return folder / "auxiliary", f"untrained, for {trained} holds no model: it costs the same"


def _figures(measured: dict[str, Measured], job: Job, ranks: Ranks) -> dict[str, Any]:
    """Of each method: what was measured, its ratio to joint, and both as predicted."""
    gpu = measurement.known_gpu(torch.cuda.get_device_name(ranks.device)) if ranks.device.type == "cuda" else None
    peak = None if gpu is None else gpu.flops_32 if job.zero.dtype == "fp32" else gpu.flops_16
    predicted = {method: _predicted(job, method) for method in measured}
    joint, figures = measured["joint"], {}
    for method, own in measured.items():
        prediction, flops = predicted[method], predicted[method]["flops_per_update"]
        figures[method] = {
            "seconds_per_update": _spread([second for turn in own.seconds for second in turn]),
            "seconds_ratio": _spread(ratios(own.seconds, joint.seconds)),
            "seconds_ratio_predicted": flops / predicted["joint"]["flops_per_update"],
            "cpu_seconds_per_update": _spread([second for turn in own.cpu_seconds for second in turn]),
            "cpu_seconds_ratio": _spread(ratios(own.cpu_seconds, joint.cpu_seconds)),
            "peak_bytes": own.peak,
            "peak_bytes_of_ranks": [memory.peak for memory in own.memory],
            "held_bytes": own.held,
            "peak_ratio": own.peak / joint.peak,
            "peak_ratio_predicted": prediction["peak_bytes"] / predicted["joint"]["peak_bytes"],
            "bucket_bytes": sum(reduction_buckets(trained_parameters(job, method), job.zero).values()),
            "predicted": prediction,
            "tokens_per_second": own.tokens / own.median,
            "flops_per_second_and_process": flops / own.median / ranks.world,
            "mfu": None if peak is None else flops / own.median / ranks.world / peak,
            "skipped_updates": own.skipped,
            "seconds": own.seconds,
            "cpu_seconds": own.cpu_seconds,
        }
    return figures


def _spread(values: list[float]) -> dict[str, float]:
    quartiles = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    lower, median, upper = quartiles.tolist()
    return {"median": median, "lower": lower, "upper": upper, "lowest": min(values), "highest": max(values)}


def _predicted(job: Job, method: str) -> dict[str, Any]:
    """What `fast-electra estimate` says: FLOPs of an update, and a device's bytes at the highest moment."""
    flops = sum(sum(terms.values()) for terms in sequence_flops(job, method).values())
    highest = max(moments(job, method), key=lambda moment: sum(moment.terms.values()))
    return {
        "flops_per_update": job.sequences * flops,
        "peak_bytes": sum(highest.terms.values()),
        "highest_moment": highest.name,
        "bytes": highest.terms,
    }


def _deepspeed_flops(build: Build, job: Job, ranks: Ranks) -> dict[str, dict[str, float]]:
    """Forward FLOPs of one sequence in an online update: by DeepSpeed's profiler, and as predicted."""
    run = build()
    assert isinstance(run.objective, RTD) and isinstance(run.objective.distribution, Auxiliary)
    auxiliary = run.objective.distribution.model
    assert isinstance(auxiliary, ReplayedModel)
    models = {"main model": run.engine.module, "auxiliary": auxiliary.model}
    counted = forward_flops(models, lambda: measurement.finished_update(run, 1))
    own = job.sequences / ranks.world
    predicted = sequence_flops(job, "online")
    return {
        name: {
            "deepspeed": flops / own,
            "predicted": sum(value for term, value in predicted[name].items() if term not in (BACKWARD, RECOMPUTATION)),
        }
        for name, flops in counted.items()
    }
