"""Check whether an offline store fits a run: compare what determines which tokens are replaced."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fast_electra.batch import ceil_div
from fast_electra.config import SECTION, Config
from fast_electra.corpus.corpus import Corpus
from fast_electra.model.files import describe
from fast_electra.replacement.distribution import Distribution, LinearDistribution, axis_position
from fast_electra.settings import UserError
from fast_electra.store.format import Facts, SetRecord, StoreKind, StorePlan
from fast_electra.store.reader import Stored, open_store
from fast_electra.training.engines import Ranks
from fast_electra.training.loop import EXAMPLES, REFERENCE, evaluation_size
from fast_electra_kernels import noise


def open_for_run(config: Config, corpus: Corpus, ranks: Ranks) -> tuple[Stored, dict[str, Any]]:
    """Open the store that a config names.

    Returns:
        The store, and the facts about its auxiliary that online training would record.

    Raises:
        UserError: the store is not complete, is damaged, or was written for another run. Rank 0 checks the contents
            for all.
    """
    assert config.run.replacement.store is not None
    folder, known = Path(config.run.replacement.store), known_of_auxiliary(config)
    stored = open_store(folder, facts_of_run(config, corpus, known), verify=ranks.rank == 0)
    drawn_by = stored.plan.about.get("auxiliary_hash")
    if ranks.rank == 0 and drawn_by and "auxiliary_hash" not in known:
        print(f"note: there is no auxiliary model to compare; {folder} was drawn by the one with hash {drawn_by[:12]}")
    return stored, stored.plan.about


def known_of_auxiliary(config: Config) -> dict[str, Any]:
    """Return hash and precision of the run's auxiliary, as far as they are known without loading it."""
    run, known = config.run, {}
    if run.replacement.from_auxiliary and run.auxiliary is not None:
        if run.auxiliary.dtype != "auto":
            known["auxiliary_dtype"] = run.auxiliary.dtype
        if run.auxiliary.run is not None and (description := describe(Path(run.auxiliary.run) / "model")):
            known["auxiliary_hash"] = description["hash"]
    return known


def facts_of_run(config: Config, corpus: Corpus, auxiliary: dict[str, Any]) -> Callable[[StoreKind], Facts]:
    """Return the facts on which a store of a kind depends, as a function of the kind.

    Args:
        config: of the run.
        corpus: of the run.
        auxiliary: `auxiliary_hash` and `auxiliary_dtype`, as far as they are known.
    """
    run, batch = config.run, config.sequences
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
    if replacement.from_auxiliary:
        common[f"{SECTION}.replacement.augmentation"] = replacement.augmentation
        common["the noise of the draws"] = noise.VERSION
        names = {"auxiliary_hash": "the auxiliary model", "auxiliary_dtype": f"{SECTION}.auxiliary.dtype"}
        common |= {name: auxiliary[key] for key, name in names.items() if key in auxiliary}
    elif replacement.needs_alpha:
        common[f"{SECTION}.replacement.alpha"] = replacement.alpha

    # An evaluation may read any number of sequences. It reads all of them if the config asks for more than there are.
    there_are = max(len(corpus.heldout or ()), ceil_div(len(corpus.train), REFERENCE))
    evaluation: dict[str, Any] = {f"{SECTION}.evaluation.sequences": min(_heldout_count(config), there_are)}

    def facts(kind: StoreKind) -> Facts:
        if kind == "axis":
            stream = f"the training stream ({SECTION}.updates * train_batch_size)"
            most: dict[str, Any] = {stream: run.updates * batch, f"{SECTION}.curriculum.initial": curriculum.initial}
            return Facts(exact=common, most=evaluation | most)
        scheduled = {f"{SECTION}.curriculum.{name}": value for name, value in curriculum.model_dump().items()}
        length = {f"{SECTION}.updates": run.updates, "train_batch_size": batch}
        return Facts(exact=common | scheduled | length, most=evaluation)

    return facts


def _heldout_count(config: Config) -> int:
    """Number of held-out sequences that a run may draw for: its evaluations read some, its report shows some."""
    return max(config.run.evaluation.sequences, EXAMPLES)


def plan_store(
    config: Config, corpus: Corpus, distribution: Distribution, auxiliary_facts: dict[str, Any], part: int
) -> tuple[list[float], StorePlan]:
    """Plan the store of a run.

    Args:
        config: of the run.
        corpus: of the run.
        distribution: what draws.
        auxiliary_facts: facts about the auxiliary, from `parts.build_distribution`.
        part: number of sequences of a file.

    Returns:
        For a store of kind `fixed`, the strength at each update, else nothing; and the plan.

    Raises:
        UserError: the distribution cannot be stored for every strength at once.
    """
    run = config.run
    floor, low, high = distribution.floor, None, None
    strengths: list[float] = []
    if run.curriculum.per == "epoch":
        epoch = len(corpus.train)
        strengths = [run.curriculum.strength(config.u(n, epoch), floor) for n in range(1, run.updates + 1)]
    elif isinstance(distribution, LinearDistribution):
        low, high = sorted(axis_position(distribution.parameter, end) for end in (run.curriculum.initial, floor))
    else:
        raise UserError(
            f"draws under fast_electra.replacement.augmentation {run.replacement.augmentation} cannot be stored for "
            "every value at once: hold the value through each epoch with --set fast_electra.curriculum.per=epoch "
            "(here and when training), or train without a store"
        )
    kind: StoreKind = "fixed" if strengths else "axis"
    sets = [SetRecord(name="train", source="train", value=None, sequences=run.updates * config.sequences)]
    for source, sequences in (("heldout", corpus.heldout), ("reference", corpus.train)):
        if corpus.heldout is not None and sequences is not None:  # without held-out sequences nothing is evaluated
            count = evaluation_size(sequences, source, _heldout_count(config))
            for number, strength in enumerate(dict.fromkeys(strengths) or [None]):
                name = source if strength is None else f"{source}-at-{number:04d}"
                sets.append(SetRecord(name=name, source=source, value=strength, sequences=count))
    return strengths, StorePlan(
        kind=kind,
        parameter=distribution.parameter,
        floor=floor,
        low=low,
        high=high,
        vocabulary_size=corpus.tokenizer.vocabulary_size,
        part=part,
        facts=facts_of_run(config, corpus, auxiliary_facts)(kind),
        sets=sets,
        about=auxiliary_facts,
    )


def check_same(folder: Path, before: StorePlan, now: StorePlan) -> None:
    """Check that an unfinished store is continued for the run that it was begun for.

    Raises:
        UserError: naming the first fact that differs.
    """
    old, new = ({"kind": plan.kind, **plan.facts.exact, **plan.facts.most} for plan in (before, now))
    for name in old | new:
        if old.get(name) != new.get(name):
            raise UserError(
                f"{folder} holds the unfinished store of another run: {name} was {old.get(name)} and is now "
                f"{new.get(name)}; set it back, choose another --output, or remove the folder"
            )
