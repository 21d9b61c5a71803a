"""Fine-tuning on a task: what `launch/finetune.py` starts on every rank. One run, or a search over settings."""

import dataclasses
import gc
import json
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from fast_electra import parts
from fast_electra.corpus.loader import Loader, SequenceSource
from fast_electra.files import read_json, remove_folder, seal, write_json, write_sealed
from fast_electra.finetuning import config, metrics, sweep
from fast_electra.finetuning.config import FineTuningConfig
from fast_electra.finetuning.examples import Examples
from fast_electra.finetuning.predictions import write_predictions
from fast_electra.finetuning.pretrained import model_hash, open_pretrained, tokenizer_of
from fast_electra.finetuning.scoreboard import RESULTS, SCORES
from fast_electra.finetuning.sweep import Member
from fast_electra.finetuning.tables import Table, read_data, summary
from fast_electra.finetuning.tasks import Task, open_task
from fast_electra.jobs import launcher, session
from fast_electra.model.heads import count_parameters
from fast_electra.objectives.finetuning import FineTuning
from fast_electra.objectives.objective import Row
from fast_electra.report.page import write_report
from fast_electra.run_settings import SECTION
from fast_electra.settings import UserError, first_line
from fast_electra.training.engines import Ranks, from_rank_0, stop_ranks
from fast_electra.training.loop import Run, evaluate
from fast_electra.training.machine import this_machine

PREDICTIONS = "predictions"


@dataclasses.dataclass
class Work:
    """A task with its rows, and their tokens once a model has been opened."""

    task: Task
    data: dict[str, Table]
    examples: dict[str, Examples] = dataclasses.field(default_factory=dict)

    @cached_property
    def hash(self) -> str:
        """Hash of the task and of all rows: a run may not go on with others."""
        rows = {name: [table.texts, table.labels.tolist()] for name, table in self.data.items()}
        return seal([self.task.model_dump(), rows])


def main(path: Path, overrides: Sequence[str], grid: sweep.Grid | None = None, seeds: int = 1) -> None:
    """Join the launcher's process group, train every member of the search that is not complete, and leave it."""
    task, folder = open_search(path, overrides)
    with launcher.only_job(folder, f"name another run folder with --set {SECTION}.run=FOLDER"):
        session.check_kinds(folder)
        work, configs = prepare(path, overrides, task, folder, grid, seeds)
        ranks = launcher.begin(next(iter(configs.values())))
        if ranks.rank == 0:
            print("\n".join(summary(work.data)), flush=True)
        search(folder, work, configs, ranks)
        stop_ranks()


def open_search(path: Path, overrides: Sequence[str]) -> tuple[Task, Path]:
    """Return the task of a config, and the folder of its run or search."""
    settings, _ = config.read(path, overrides)
    task = open_task(settings.task)
    return task, Path(settings.run or f"runs/finetuned/{task.name}")


def prepare(
    path: Path, overrides: Sequence[str], task: Task, folder: Path, grid: sweep.Grid | None = None, seeds: int = 1
) -> tuple[Work, dict[Member, FineTuningConfig]]:
    """Read the data, and check the config of every member of the search before the first one trains."""
    settings, _ = config.read(path, overrides)
    if settings.tokenizer is None and (place := tokenizer_of(settings.pretrained)):
        overrides = [*overrides, f"{SECTION}.tokenizer={json.dumps(place)}"]  # so that the new run names it too
    work = Work(task, read_data(task, Path(settings.data)))
    configs = {}
    for member in sweep.members(grid, seeds, settings.seed):
        own = [*overrides, *member.overrides, f"{SECTION}.run={json.dumps(str(folder / member.folder))}"]
        configs[member] = config.load(path, own, len(work.data["train"]), this_machine())
    return work, configs


def search(folder: Path, work: Work, configs: dict[Member, FineTuningConfig], ranks: Ranks) -> None:
    """Train all members, keep the model of the best one, and say which setting is best on the dev sets."""
    scores: dict[Member, float] = {}
    for number, (member, one) in enumerate(configs.items(), 1):
        if ranks.rank == 0 and len(configs) > 1:
            print(f"run {number} of {len(configs)}: {member.folder}", flush=True)
        train(work, one, ranks)
        gc.collect()  # an engine refers to itself
        scores[member] = from_rank_0(ranks, lambda one=one: _score(Path(one.run.run)))  # type: ignore[misc]
        from_rank_0(ranks, lambda: _keep_the_best(folder, scores))
    from_rank_0(ranks, lambda: _conclude(folder, work.task, scores))


def train(work: Work, one: FineTuningConfig, ranks: Ranks) -> None:
    """Train one member to its end, from wherever its folder is."""
    folder = Path(one.run.run)
    if from_rank_0(ranks, lambda: _is_scored(work, one, folder)):
        return
    run, tests, opening = build(work, one, ranks)
    session.finish(run, opening, partial(close, work, run, tests))
    if ranks.rank == 0:
        remove_folder(folder / "checkpoints")  # a search would fill the disk


def _is_scored(work: Work, one: FineTuningConfig, folder: Path) -> bool:
    """Return whether a member was complete, and its model removed because it was not the best one."""
    if not (folder / SCORES).exists() or (folder / "model").exists():
        return False
    session.check_same_run(folder / "config.json", session.facts_of(one, _facts(work, one)))
    return True


def _facts(work: Work, one: FineTuningConfig) -> dict[str, Any]:
    return {"model_hash": model_hash(one.run), "data_hash": work.hash}


def build(work: Work, one: FineTuningConfig, ranks: Ranks) -> tuple[Run, dict[str, SequenceSource], list[str]]:
    """Build what trains. Also return the sets without labels, and lines about model and data."""
    settings, task = one.run, work.task
    opened = open_pretrained(settings, task)
    if not work.examples:
        length = settings.sequence_length
        work.examples = {name: Examples(table.texts, opened.encode, length) for name, table in work.data.items()}
    labelled = {name: table for name, table in work.data.items() if len(table.labels)}
    sizes = {name: len(table) for name, table in work.data.items() if name != "train"}

    def scores(name: str, outputs: Any) -> dict[str, float]:
        return metrics.scores(task, outputs, labelled[name].labels)

    objective = FineTuning(
        opened.model,
        {name: torch.from_numpy(table.labels) for name, table in labelled.items()},
        sizes,
        task.regression,
        one.sequences,
        scores,
        opened.exports,
    )
    engine = parts.build_engine(one, objective)
    loader = Loader(work.examples["train"], parts.share_of(one, ranks), settings.seed, mask_fraction=0.0)
    sets: dict[str, SequenceSource] = {name: work.examples[name] for name in sizes if name in task.dev}
    tests: dict[str, SequenceSource] = {name: work.examples[name] for name in sizes if name not in task.dev}
    run = Run(one, ranks, objective, engine, loader, sets, _facts(work, one), opened.tokenizer_hash)
    return run, tests, [_headline(run, opened.title, task), *_cut(work, settings.sequence_length)]


def close(work: Work, run: Run, tests: dict[str, SequenceSource], evaluation: Row) -> None:
    """Predict the test sets, and write predictions and scores. All ranks call this."""
    objective, folder = run.objective, Path(run.config.run.run)
    assert isinstance(objective, FineTuning)
    more = evaluate(dataclasses.replace(run, sets=tests), run.config.run.updates) if tests else Row()
    from_rank_0(run.ranks, lambda: _write(work, objective, folder, evaluation, more))


def _write(work: Work, objective: FineTuning, folder: Path, evaluation: Row, tests: Row) -> None:
    task, confusions = work.task, {}
    for name, outputs in objective.outputs.items():
        write_predictions(folder / PREDICTIONS, task, name, outputs, work.data[name].ids)
        if name not in objective.labels:
            continue
        labels = work.data[name].labels
        if not task.regression:
            confusions[name] = metrics.confusion(task, outputs, labels).tolist()
        if doubt := metrics.note(task, outputs, labels):
            print(f"note: {name}: {doubt}", flush=True)
    test = {name.replace("heldout", "test", 1): value for name, value in tests.items()}
    found = {"task": task.name, "metric": task.metric, "labels": list(task.labels), "dev": evaluation, "test": test}
    write_sealed(folder / SCORES, found | {"confusion": confusions})


def _score(folder: Path) -> float:
    path = folder / SCORES
    try:
        return float(read_json(path)["dev"]["heldout_score"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        remedy = f"remove the folder {folder}, and the same command trains it again"
        raise UserError(f"{path} cannot be read ({first_line(error)}): {remedy}") from None


def _best(folder: Path, scores: dict[Member, float]) -> Member:
    """Return the member with the highest score: of equals one whose model is there, and of these the first one."""
    return max(scores, key=lambda member: (scores[member], (folder / member.folder / "model").exists()))


def _keep_the_best(folder: Path, scores: dict[Member, float]) -> None:
    """Remove the models of all members but the best one: a search of Table 4 has 144."""
    best = _best(folder, scores)
    for member in scores:
        if member != best:
            remove_folder(folder / member.folder / "model")


def _conclude(folder: Path, task: Task, scores: dict[Member, float]) -> None:
    found, first = sweep.standings(scores), _best(folder, scores)
    own = folder / first.folder
    if len(scores) > 1:
        best = [member for member in scores if member.setting == found[0].setting]
        write_json(folder / RESULTS, sweep.to_json(found, task.metric, task.name) | {"model": first.folder})
        print("\n".join(sweep.table(found, task.metric)))
        print(f"best model: {own / 'model'}")
        page = write_report([folder / member.folder for member in best], folder / "report.html")
        print(f"report: {page}", flush=True)
    if not (own / "model").exists():  # removed by a user, or by an earlier search that had a better one
        raise UserError(f"{own / 'model'} was removed: remove {own} too, and the same command trains it again")


def _headline(run: Run, title: str, task: Task) -> str:
    config, world = run.config, run.ranks.world
    rows, millions = len(run.loader.sequences), count_parameters(run.objective.model) / 1e6
    return (
        f"{task.shown} from {title}: {millions:.{0 if millions >= 20 else 2}f} M parameters, {config.dtype}, {world} "
        f"process{'es' if world > 1 else ''} on {run.ranks.device.type}; {rows:,} rows, {config.sequences} an update, "
        f"{config.run.updates:,} updates = {config.run.updates * config.sequences / rows:.2f} epochs"
    )


def _cut(work: Work, length: int) -> list[str]:
    cut = {name: examples.cut for name, examples in work.examples.items() if examples.cut}
    return [
        f"note: {name}: {count:,} of {len(work.examples[name]):,} rows are longer than {length} tokens and lose their "
        f"end; --set {SECTION}.sequence_length=N keeps more"
        for name, count in cut.items()
    ]
