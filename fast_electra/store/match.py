"""What decides the corrupted tokens of a run: the facts by which it and an offline store know each other."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fast_electra.config import SECTION, Config
from fast_electra.replacement.distribution import Distribution, LinearDistribution, coordinate
from fast_electra.report.examples import COUNT
from fast_electra.settings import UserError
from fast_electra.store.format import Facts, Kind, Plan, SetRecord
from fast_electra.store.reader import Stored, open_store
from fast_electra.training.engines import Ranks
from fast_electra.training.loop import REFERENCE, evaluation_size
from fast_electra_kernels import noise

if TYPE_CHECKING:
    from fast_electra.parts import Corpus


def open_for_run(config: Config, corpus: "Corpus", ranks: Ranks) -> tuple[Stored, dict[str, Any]]:
    """The store that the config names, and the facts about its auxiliary that training online would record.

    Raises:
        UserError: it is not complete, belongs to another run, or was damaged. Rank 0 checks the contents for all.
    """
    assert config.run.replacement.store is not None
    folder, known = Path(config.run.replacement.store), known_of_auxiliary(config)
    stored = open_store(folder, facts_of_run(config, corpus, known), verify=ranks.rank == 0)
    drawn_by = stored.plan.about.get("auxiliary_hash")
    if ranks.rank == 0 and drawn_by and "auxiliary_hash" not in known:
        print(f"note: there is no auxiliary model to compare; {folder} was drawn by the one with hash {drawn_by[:12]}")
    return stored, stored.plan.about


def known_of_auxiliary(config: Config) -> dict[str, Any]:
    """Hash and precision of the run's auxiliary as far as they can be told without it: it need not be there."""
    run, known = config.run, {}
    if run.replacement.distribution == "auxiliary" and run.auxiliary is not None:
        if run.auxiliary.dtype != "auto":
            known["auxiliary_dtype"] = run.auxiliary.dtype
        if run.auxiliary.run is not None:
            with contextlib.suppress(OSError, ValueError, KeyError):
                description = Path(run.auxiliary.run) / "model" / "model.json"
                known["auxiliary_hash"] = json.loads(description.read_text())["hash"]
    return known


def facts_of_run(config: Config, corpus: "Corpus", auxiliary: dict[str, Any]) -> Callable[[Kind], Facts]:
    """The facts on which a store of that kind depends.

    Args:
        auxiliary: `auxiliary_hash` and `auxiliary_dtype`, as far as they are known.
    """
    run, batch = config.run, config.deepspeed["train_batch_size"]
    replacement, curriculum = run.replacement, run.curriculum
    common: dict[str, Any] = {
        "the corpus": corpus.hash,
        "the tokenizer": corpus.tokenizer.hash,
        "the number of training sequences": len(corpus.train),
        "the number of held-out sequences": len(corpus.heldout or ()),
        f"{SECTION}.replacement.distribution": replacement.distribution,
        f"{SECTION}.seed": run.seed,
        f"{SECTION}.corruption.mask_fraction": run.corruption.mask_fraction,
        f"{SECTION}.corpus.sequence_length": run.corpus.sequence_length,
    }
    if replacement.distribution == "auxiliary":
        common[f"{SECTION}.replacement.augmentation"] = replacement.augmentation
        common["the noise of the draws"] = noise.VERSION
        names = {"auxiliary_hash": "the auxiliary model", "auxiliary_dtype": f"{SECTION}.auxiliary.dtype"}
        common |= {name: auxiliary[key] for key, name in names.items() if key in auxiliary}
    elif "smoothed_one_hot" in replacement.distribution:
        common[f"{SECTION}.replacement.alpha"] = replacement.alpha

    # Of an evaluation any number of sequences will do; all of them, where the config asks for more than there are.
    there_are = max(len(corpus.heldout or ()), -(-len(corpus.train) // REFERENCE))
    evaluation: dict[str, Any] = {f"{SECTION}.evaluation.sequences": min(evaluation_count(config), there_are)}

    def facts(kind: Kind) -> Facts:
        if kind == "axis":
            stream = f"the training stream ({SECTION}.updates * train_batch_size)"
            most: dict[str, Any] = {stream: run.updates * batch, f"{SECTION}.curriculum.initial": curriculum.initial}
            return Facts(exact=common, most=evaluation | most)
        scheduled = {f"{SECTION}.curriculum.{name}": value for name, value in curriculum.model_dump().items()}
        length = {f"{SECTION}.updates": run.updates, "train_batch_size": batch}
        return Facts(exact=common | scheduled | length, most=evaluation)

    return facts


def evaluation_count(config: Config) -> int:
    """Held-out sequences that a run may draw for: those of its evaluations, and the examples of its report."""
    return max(config.run.evaluation.sequences, COUNT)


def plan_store(
    config: Config, corpus: "Corpus", distribution: Distribution, about: dict[str, Any], part: int
) -> tuple[list[float], Plan]:
    """What the store of a run will hold; and of kind `fixed` the curriculum's value at each update, else nothing.

    Args:
        about: facts about the auxiliary, as `build_distribution` gives them.
        part: sequences of a file.

    Raises:
        UserError: the distribution cannot be stored for every value at once.
    """
    run, batch = config.run, config.deepspeed["train_batch_size"]
    floor, low, high = distribution.floor, None, None
    values: list[float] = []
    if run.curriculum.per == "epoch":
        clock = config.clock(len(corpus.train))
        values = [run.curriculum.value(clock(n), floor) for n in range(1, run.updates + 1)]
    elif isinstance(distribution, LinearDistribution):
        low, high = sorted(coordinate(distribution.parameter, value) for value in (run.curriculum.initial, floor))
    else:
        raise UserError(
            f"draws under fast_electra.replacement.augmentation {run.replacement.augmentation} cannot be stored for "
            "every value at once: hold the value through each epoch with --set fast_electra.curriculum.per=epoch "
            "(here and when training), or train without a store"
        )
    kind: Kind = "fixed" if values else "axis"
    sets = [SetRecord(name="train", source="train", value=None, sequences=run.updates * batch)]
    for source, sequences in (("heldout", corpus.heldout), ("reference", corpus.train)):
        if corpus.heldout is not None and sequences is not None:  # without the one no evaluation needs the other
            count = evaluation_size(sequences, source, evaluation_count(config))
            for number, value in enumerate(dict.fromkeys(values) or [None]):
                name = source if value is None else f"{source}-at-{number:04d}"
                sets.append(SetRecord(name=name, source=source, value=value, sequences=count))
    return values, Plan(
        kind=kind,
        parameter=distribution.parameter,
        floor=floor,
        low=low,
        high=high,
        vocabulary_size=corpus.tokenizer.vocabulary_size,
        part=part,
        facts=facts_of_run(config, corpus, about)(kind),
        sets=sets,
        about=about,
    )


def check_same(folder: Path, before: Plan, now: Plan) -> None:
    """An unfinished store is continued under the very facts that it was begun with."""
    old, new = ({"kind": plan.kind, **plan.facts.exact, **plan.facts.most} for plan in (before, now))
    for name in old | new:
        if old.get(name) != new.get(name):
            raise UserError(
                f"{folder} holds the unfinished store of another run: {name} was {old.get(name)} and is now "
                f"{new.get(name)}; set it back, choose another --output, or remove the folder"
            )
