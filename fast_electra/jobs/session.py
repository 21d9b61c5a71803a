"""One training run in its folder, from wherever the folder is to the end: what every training job shares."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fast_electra.files import read_json, write_sealed
from fast_electra.report.page import write_report
from fast_electra.run_settings import SECTION, ResolvedConfig
from fast_electra.settings import UserError, first_line
from fast_electra.training import checkpoint
from fast_electra.training.console import Monitor
from fast_electra.training.engines import from_rank_0, full_weights, wait_for_ranks
from fast_electra.training.failure import lost_rank
from fast_electra.training.loop import NotFinite, Run, fit
from fast_electra.training.metrics import Row, absurd_loss
from fast_electra.training.signals import Interrupted, watch

# What may differ between the sessions of one run: it does not change what is learnt. Files are compared by hash.
FREE = {
    "apex",
    *(f"{SECTION}.{key}" for key in ("run", "log_every", "wait_minutes", "apex", "checkpoint", "evaluation")),
    *(f"{SECTION}.{key}" for key in ("auxiliary.run", "auxiliary.huggingface", "auxiliary.accept_weak")),
    *(f"{SECTION}.{key}" for key in ("replacement.store", "corpus.shards", "corpus.tokenizer")),
    *(f"{SECTION}.{key}" for key in ("pretrained", "tokenizer", "data", "task")),
    *(f"{SECTION}.model.{key}" for key in ("activation_checkpointing", "attention", "huggingface")),
    *("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "steps_per_print", "wall_clock_breakdown"),
    *("memory_breakdown", "dump_state", "log_level", "tensorboard", "wandb", "csv_monitor", "comet"),
    *("comms_logger", "flops_profiler", "checkpoint"),
    *(f"zero_optimization.{key}" for key in ("reduce_bucket_size", "allgather_bucket_size", "overlap_comm")),
}
HASHED = {  # facts whose values say nothing to a user
    "model_hash": "the model of --checkpoint",
    "data_hash": "the task or its data",
    "existing_hash": f"the model of {SECTION}.model.huggingface",
}
_FILES = ("config.json", "status.json", "metrics.jsonl", "examples.json", "scores.json", "report.html")
_FOLDERS = ("checkpoints", "model", "predictions")


def check_kinds(folder: Path) -> None:
    """Refuse a folder in the place of a file that the run writes, or the other way round: now, not at its end."""
    for path in (folder / name for name in (*_FILES, *_FOLDERS)):
        if path.exists() and path.is_dir() != (path.name in _FOLDERS):
            is_now, wanted = ("folder", "file") if path.is_dir() else ("file", "folder")
            raise UserError(f"{path} is a {is_now}, and the run writes a {wanted} there: move it away")


def finish(run: Run, opening: Sequence[str], closing: Callable[[Row], None]) -> None:
    """Train to the end of the run, from wherever its folder is; export the models and write the report.

    Args:
        run: what was built.
        opening: lines that rank 0 prints before the training begins.
        closing: called on every rank with the last evaluation row, when all is trained and the models are written.
    """
    config, ranks, engine = run.config, run.ranks, run.engine
    folder, updates = Path(config.run.run), config.run.updates
    settled = facts_of(config, run.facts)
    start, resumed = 0, checkpoint.newest(folder / "checkpoints", ranks)
    if from_rank_0(ranks, lambda: _is_complete(run, folder, settled, resumed)):
        return
    if resumed is not None:
        start = checkpoint.load(resumed, engine)

    monitor = None
    if ranks.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_sealed(folder / "config.json", settled)
        print("\n".join(opening), flush=True)
        monitor = Monitor(folder, updates, start, engine.monitor.write_events if engine.monitor.enabled else None)
        monitor.status("running", start)
    watch.trains(folder / f"stacks-rank-{ranks.rank}.txt", config.run.wait_minutes * 60 if ranks.world > 1 else 0)
    try:
        evaluation = fit(run, folder, monitor, start)
        weights = full_weights(engine)
        from_rank_0(ranks, lambda: _export(run, folder, weights, evaluation))
        closing(evaluation)
        from_rank_0(ranks, lambda: _end(folder, monitor))
    except BaseException as error:
        if monitor is not None:
            interrupted = isinstance(error, KeyboardInterrupt) or watch.note
            what = str(error) if interrupted else lost_rank(error) or f"{type(error).__name__}: {error}"
            monitor.end("interrupted" if interrupted else "failed", monitor.update, what)
        if isinstance(error, Interrupted) and error.agreed:
            wait_for_ranks()  # the launcher ends the others when the first one leaves
            if monitor is not None:
                raise Interrupted(f"{error}, saved after update {monitor.update:,}", agreed=True) from None
        if isinstance(error, NotFinite):
            raise UserError(str(error)) from None
        raise


def _export(run: Run, folder: Path, weights: dict[str, Tensor], evaluation: Row) -> None:
    for part, write, _ in run.objective.exports(weights):
        length = run.loader.sequences.length
        write(folder / part, tokenizer=run.tokenizer_hash, sequence_length=length, evaluation=evaluation)


def _end(folder: Path, monitor: Monitor | None) -> None:
    """Write the report, and then that the run is complete."""
    assert monitor is not None
    if doubt := absurd_loss(folder):
        monitor.event(monitor.updates, "diverged", doubt)
    monitor.close()
    print(f"model: {folder / 'model'}\nreport: {write_report([folder], folder / 'report.html')}", flush=True)
    monitor.status("completed", monitor.updates, doubt)


def _is_complete(run: Run, folder: Path, settled: dict[str, Any], resumed: Path | None) -> bool:
    """Return whether nothing is left to do in a run's folder, whose newest whole checkpoint is `resumed`, and say so.

    Raises:
        UserError: the run began otherwise. Or it is complete, its model is not whole, and no checkpoint is left.
    """
    updates, completed = run.config.run.updates, _completed(folder)
    if completed or resumed is not None:
        check_same_run(folder / "config.json", settled)
    if not completed:
        return False
    if resumed is not None and resumed.name != checkpoint.name(updates):
        print(f"note: {folder} was complete; what follows {resumed.name} is trained again", flush=True)
        return False
    remedy = "it is written again, from the newest checkpoint"
    if resumed is None:
        remedy = f"{folder} was complete and has no checkpoint to write it from: restore it, or name another run folder"
    try:
        for part, _, check in run.objective.exports(dict(run.objective.model.named_parameters())):
            check(folder / part, remedy)
    except UserError as error:
        if resumed is None:
            raise
        print(f"note: {error}", flush=True)
        return False
    print(f"{folder} is complete ({updates:,} updates); to train again, name another run folder")
    return True


def _completed(folder: Path) -> bool:
    """Return whether a run's status, which is written last, says that it wrote everything."""
    try:
        return bool(json.loads((folder / "status.json").read_text())["state"] == "completed")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def facts_of(config: ResolvedConfig, facts: dict[str, Any]) -> dict[str, Any]:
    """Return what a run's config.json holds: the config, and facts about what the run reads."""
    return config.to_json() | {"apex": config.apex, **facts}


def check_same_run(path: Path, settled: dict[str, Any]) -> None:
    """Refuse to continue a run under another config, corpus, task or model than it began with; see `facts_of`."""
    try:
        before = _flat(read_json(path))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        remedy = "restore it (or remove its key checksum, if you changed it on purpose), or name another run folder"
        raise UserError(f"{path} cannot be read ({first_line(error)}), so the run cannot go on: {remedy}") from None
    if different := _first_difference(before, _flat(json.loads(json.dumps(settled))), ""):
        key, was, is_now = different
        values = f"{key} was {json.dumps(was)} when this run began ({path}) and is now {json.dumps(is_now)}"
        other = f"{HASHED[key]} is another one than when this run began ({path})" if key in HASHED else values
        raise UserError(f"{other}: set it back, or name another run folder with --set {SECTION}.run=FOLDER")


def _flat(settled: dict[str, Any]) -> dict[str, Any]:
    """Return the tree without the level `deepspeed`, whose keys users name without a prefix."""
    return {key: value for key, value in settled.items() if key != "deepspeed"} | settled.get("deepspeed", {})


def _first_difference(old: Any, new: Any, path: str) -> tuple[str, Any, Any] | None:
    """Return the first key, in alphabetical order, whose values differ and must not; with both values."""
    if path in FREE or old == new:
        return None
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return path, old, new
    for key in sorted(old.keys() | new.keys()):
        if found := _first_difference(old.get(key), new.get(key), f"{path}.{key}" if path else key):
            return found
    return None
