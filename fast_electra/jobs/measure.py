"""Table 7 of the paper from one config: joint training, Fast-ELECTRA online and offline, measured in one run (E.1).

All three train the config's main model on its batches. *Joint* trains an auxiliary beside it, as deep as the frozen
one; *online* is the config as it is; *offline* reads what was drawn from a store, which is written for the occasion.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fast_electra import config
from fast_electra.config import SECTION, Config, RunConfig
from fast_electra.cost import measure as measurement
from fast_electra.cost.estimate import auxiliary_settings, job_of_config
from fast_electra.cost.flops import BACKWARD, RECOMPUTATION
from fast_electra.cost.measure import MEMORY_UPDATES, TRACED_UPDATES, Build, Measured, Parts, ratios
from fast_electra.cost.memory import reduction_buckets
from fast_electra.cost.methods import METHODS, Job, moments, sequence_flops, trained_parameters
from fast_electra.cost.tables import table
from fast_electra.files import write_json
from fast_electra.jobs import preprocess
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.files import save_model
from fast_electra.model.heads import MaskedLanguageModel
from fast_electra.parts import Corpus, build_loader, build_objective, open_corpus
from fast_electra.settings import UserError
from fast_electra.training import operators
from fast_electra.training.engines import (
    Ranks,
    forward_flops,
    start_ranks,
    stop_ranks,
    sum_over_ranks,
    training_engine,
    wait_for_ranks,
)
from fast_electra.training.precision import resolve_dtype

NOT_LINEAR = {"dropout", "attention_dropout", "drop_token"}  # augmentations that a store holds at one value an epoch


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


def measure(path: str, overrides: list[str], options: Options) -> None:
    """Measures in processes of its own: joins the launcher's process group, prints the table, leaves it."""
    options.check()
    loaded = config.load(path, overrides)
    _check(loaded.run, path)
    operators.ensure(fused_adam=not loaded.deepspeed["optimizer"]["params"].get("torch_adam", False))
    ranks = start_ranks()
    with _scratch(Path(loaded.run.run).parent, ranks) as folder:
        result = _measure(path, overrides, options, folder, ranks)
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
    if run.replacement.distribution != "auxiliary":
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


def _measure(path: str, overrides: list[str], options: Options, folder: Path, ranks: Ranks) -> dict[str, Any]:
    """All that is known in the end, as JSON."""

    def tell(line: str) -> None:
        if ranks.rank == 0:
            print(f"measuring: {line}", flush=True)

    configs, corpus, auxiliary, source = _prepare(path, overrides, options, folder, ranks)
    builds = {method: _builder(of_method, corpus, ranks) for method, of_method in configs.items()}
    measured = measurement.measure(builds, ranks, options.updates, options.warmup, options.rounds, tell)
    if options.trace is not None:
        for method, build in builds.items():
            measurement.trace(build, ranks, options.trace / f"{method}.json")
        tell(f"traces: {options.trace}")
    run, dtype = configs["online"].run, _dtype(configs["online"])
    assert run.auxiliary is not None
    auxiliary_dtype = resolve_dtype(run.auxiliary.dtype, f"{SECTION}.auxiliary.dtype")
    job = job_of_config(configs["online"], auxiliary, ranks.world, dtype, auxiliary_dtype, operators.on_gpu())
    result = {
        "config": str(path),
        "overrides": overrides,
        "machine": measurement.machine(ranks),
        "turns": {"rounds": options.rounds, "updates": options.updates, "warmup": options.warmup},
        "batch": {"sequences": job.sequences, "per_process": job.batch.sequences, "length": job.batch.length},
        "dtype": dtype,
        "auxiliary": f"{auxiliary.layers} layer(s) of {auxiliary.hidden_size}, {auxiliary_dtype}, {source}",
        "methods": _figures(measured, job, ranks),
    }
    if options.flops:
        result["deepspeed_flops"] = _deepspeed_flops(builds["online"], job, ranks)
    return result


def _prepare(
    path: str, overrides: list[str], options: Options, folder: Path, ranks: Ranks
) -> tuple[dict[str, Config], Corpus, EncoderSettings, str]:
    """The config of each method, the corpus, sizes of the frozen auxiliary and where it comes from; writes the store.

    All are runs of just the updates that are measured, so that the store is no longer than they need.
    """
    short = [
        *overrides,
        f"{SECTION}.updates={options.last}",
        f"{SECTION}.evaluation.sequences=1",
        f"{SECTION}.replacement.store=null",
    ]
    run = config.load(path, short).run
    corpus = open_corpus(run, verify=ranks.rank == 0)
    auxiliary_run, source = _auxiliary(run, corpus, folder, ranks)
    short.append(f"{SECTION}.auxiliary.run={auxiliary_run}")
    if run.replacement.augmentation in NOT_LINEAR:
        short.append(f"{SECTION}.curriculum.per=epoch")
    online = config.load(path, short)
    auxiliary, _ = auxiliary_settings(online.run)
    assert auxiliary is not None
    joint = [f"{SECTION}.objective=joint", f"{SECTION}.joint.auxiliary_layers={auxiliary.layers}"]
    store = folder / "store"
    each = -(-options.last * online.deepspeed["train_batch_size"] // ranks.world)
    preprocess.write(online, store, ranks, each)
    configs = {
        "joint": config.load(path, short + joint),
        "online": online,
        "offline": config.load(path, [*short, f"{SECTION}.replacement.store={store}"]),
    }
    assert tuple(configs) == METHODS
    return configs, corpus, auxiliary, source


def _auxiliary(run: RunConfig, corpus: Corpus, folder: Path, ranks: Ranks) -> tuple[Path, str]:
    """The run folder of the config's auxiliary, or of one with random weights in its place; and what it is."""
    assert run.auxiliary is not None and run.auxiliary.run is not None
    trained = Path(run.auxiliary.run)
    if (trained / "model" / "model.json").is_file():
        return trained, f"trained: {trained}"
    settings, _ = auxiliary_settings(run)
    assert settings is not None
    if ranks.rank == 0:
        model = MaskedLanguageModel(settings, run.seed)
        weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
        save_model(folder / "auxiliary" / "model", "mlm", settings, weights, tokenizer=corpus.tokenizer.hash)
    wait_for_ranks()
    return folder / "auxiliary", f"untrained, for {trained} holds no model: it costs the same"


def _builder(of_method: Config, corpus: Corpus, ranks: Ranks) -> Build:
    def build() -> Parts:
        objective, _ = build_objective(of_method, corpus, ranks)
        engine = training_engine(objective.model, of_method.deepspeed)
        engine.train()
        loader = build_loader(of_method, corpus, ranks)
        return Parts(objective, engine, loader, of_method.clock(len(corpus.train)), of_method.run.seed)

    return build


def _dtype(loaded: Config) -> str:
    return next((name for name in ("bf16", "fp16") if loaded.deepspeed.get(name, {}).get("enabled")), "fp32")


def _figures(measured: dict[str, Measured], job: Job, ranks: Ranks) -> dict[str, Any]:
    """Of each method: what was measured, its ratio to joint, and both as predicted."""
    gpu = measurement.known_gpu(torch.cuda.get_device_name(ranks.device)) if operators.on_gpu() else None
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
    parts = build()
    auxiliary: Any = parts.objective.distribution.model  # type: ignore[attr-defined]
    models = {"main model": parts.engine.module, "auxiliary": auxiliary}
    counted = forward_flops(models, lambda: parts.update(1, ranks))
    own = job.sequences / ranks.world
    predicted = sequence_flops(job, "online")
    return {
        name: {
            "deepspeed": flops / own,
            "predicted": sum(value for term, value in predicted[name].items() if term not in (BACKWARD, RECOMPUTATION)),
        }
        for name, flops in counted.items()
    }
