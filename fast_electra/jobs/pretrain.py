"""One pre-training run from its config: what `launch/pretrain.py` starts on every rank."""

import json
import sys
from pathlib import Path
from typing import Any

from fast_electra.config import SECTION, Config
from fast_electra.files import write_json
from fast_electra.model.files import save_model
from fast_electra.model.heads import count_parameters
from fast_electra.parts import build_loader, build_objective, open_corpus
from fast_electra.report.examples import write_examples
from fast_electra.report.page import write_report
from fast_electra.settings import UserError
from fast_electra.training import checkpoint, operators
from fast_electra.training.console import Monitor
from fast_electra.training.engines import Ranks, full_weights, start_ranks, stop_ranks, training_engine, wait_for_ranks
from fast_electra.training.loop import NotFinite, Plan, fit

# What may differ between the sessions of one run, for it does not change what is learnt. Files are compared by hashes.
FREE = {
    *(
        f"{SECTION}.{key}"
        for key in ("run", "log_every", "checkpoint", "evaluation", "auxiliary.run", "replacement.store")
    ),
    *(f"{SECTION}.corpus.{key}" for key in ("shards", "tokenizer")),
    *("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "steps_per_print", "wall_clock_breakdown"),
    *("memory_breakdown", "dump_state", "log_level", "tensorboard", "wandb", "csv_monitor", "comet"),
    *("comms_logger", "flops_profiler", "checkpoint"),
    *(f"zero_optimization.{key}" for key in ("reduce_bucket_size", "allgather_bucket_size", "overlap_comm")),
}


def pretrain(config: Config) -> None:
    """One run in processes of its own: joins the launcher's process group, trains, leaves it."""
    operators.ensure(fused_adam=not config.deepspeed["optimizer"]["params"].get("torch_adam", False))
    ranks = start_ranks()
    train(config, ranks)
    stop_ranks()


def train(config: Config, ranks: Ranks) -> None:
    """Trains to the end of the run, continuing where its folder stands; exports the model and writes the report."""
    run, folder = config.run, Path(config.run.run)
    corpus = open_corpus(run, verify=ranks.rank == 0)
    objective, facts = build_objective(config, corpus, ranks)
    settled = config.to_json() | {"corpus_hash": corpus.hash, **facts}
    resumed = checkpoint.newest(folder / "checkpoints", ranks)
    if resumed is not None:
        _check_same_run(folder / "config.json", settled)
        if resumed.name == checkpoint.name(run.updates) and _completed(folder):
            if ranks.rank == 0:
                print(f"{folder} is complete ({run.updates:,} updates); name another run folder to train anew")
            return

    engine = training_engine(objective.model, config.deepspeed)
    start = checkpoint.load(resumed, engine) if resumed is not None else 0
    plan = Plan(run.updates, run.seed, run.log_every, run.checkpoint, run.evaluation, config.clock(len(corpus.train)))
    loader = build_loader(config, corpus, ranks)

    accuracy = {name: facts[name] for name in ("heldout_mlm_accuracy",) if name in facts}
    monitor = None
    if ranks.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", settled)
        print(_headline(config, corpus, objective, ranks), flush=True)
        for section in config.unread:
            print(f"note: objective {run.objective} makes no use of {SECTION}.{section}")
        monitor = Monitor(folder, run.updates, start, engine.monitor.write_events if engine.monitor.enabled else None)
        monitor.status("running", start)
    try:
        evaluation = fit(objective, engine, loader, corpus.heldout, plan, ranks, folder, monitor, start, accuracy)
    except BaseException as error:
        if monitor is not None:
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            monitor.status(state, monitor.update, f"{type(error).__name__}: {error}")
            monitor.close()
        elif isinstance(error, UserError):  # met by this rank, perhaps by it alone: the launch script may be silent
            sys.stderr.write(f"rank {ranks.rank}: {error}\n")
        if isinstance(error, NotFinite):
            raise UserError(str(error)) from None
        raise
    weights = full_weights(engine)
    if ranks.rank == 0 and monitor is not None:
        for part, kind, settings, of_part in objective.exports(weights):
            save_model(folder / part, kind, settings, of_part, tokenizer=corpus.tokenizer.hash, evaluation=evaluation)
        if corpus.heldout is not None:
            value = objective.value(plan.fraction(run.updates))
            tokenizer = corpus.tokenizer
            write_examples(folder, objective, engine, corpus.heldout, tokenizer, run.updates, value, run.seed, ranks)
        monitor.close()
        print(f"model: {folder / 'model'}\nreport: {write_report([folder], folder / 'report.html')}", flush=True)
        monitor.status("completed", run.updates)
    wait_for_ranks()  # what was written is there for whatever a rank does next


def _headline(config: Config, corpus: Any, objective: Any, ranks: Ranks) -> str:
    run, batch = config.run, config.deepspeed["train_batch_size"]
    millions = count_parameters(objective.model) / 1e6
    dropped = corpus.train.dropped
    precision = next((name for name in ("bf16", "fp16") if config.deepspeed.get(name, {}).get("enabled")), "fp32")
    return (
        f"{run.objective} {run.recipe}: {millions:.{0 if millions >= 20 else 2}f} M parameters, {precision}, "
        f"{ranks.world} process{'es' if ranks.world > 1 else ''} on {ranks.device.type}; "
        f"{len(corpus.train):,} sequences of {run.corpus.sequence_length}, {batch} an update, {run.updates:,} updates "
        f"= {run.updates * batch / len(corpus.train):.2f} epochs; "
        f"left out: {dropped.documents} documents too short ({dropped.tokens} tokens)"
    )


def _completed(folder: Path) -> bool:
    """Whether a run wrote all that it writes: its status is the last of it."""
    try:
        return bool(json.loads((folder / "status.json").read_text())["state"] == "completed")
    except (OSError, ValueError, KeyError):
        return False


def _check_same_run(path: Path, settled: dict[str, Any]) -> None:
    """Refuses to continue a run under a config, corpus or auxiliary other than it began with."""
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError):
        raise UserError(
            f"{path} cannot be read, so its checkpoints cannot be continued; name another run folder"
        ) from None
    now = json.loads(json.dumps(settled))
    for tree in (before, now):
        tree |= tree.pop("deepspeed", {})  # whose keys are named without a prefix
    for key, was, is_now in _differences(before, now, ""):
        raise UserError(
            f"{key} was {json.dumps(was)} when this run began ({path}) and is now {json.dumps(is_now)}: "
            f"set it back, or name another run folder with --set {SECTION}.run=FOLDER"
        )


def _differences(old: Any, new: Any, path: str) -> list[tuple[str, Any, Any]]:
    if path in FREE or old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        prefix = f"{path}." if path else ""
        return [found for key in keys for found in _differences(old.get(key), new.get(key), prefix + key)]
    return [(path, old, new)]
