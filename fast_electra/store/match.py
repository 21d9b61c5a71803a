"""Plan an offline store, and check whether a store fits a run: both name what determines the drawn tokens."""

from pathlib import Path
from typing import Any

from fast_electra.auxiliary import hash_of
from fast_electra.batch import ceil_div
from fast_electra.config import SECTION, Config
from fast_electra.corpus.corpus import Corpus
from fast_electra.files import check_files, read_settings
from fast_electra.replacement.distribution import Distribution, LinearDistribution, axis_position
from fast_electra.settings import UserError
from fast_electra.store.format import MANIFEST, PLAN, Facts, SetRecord, StoreKind, StoreManifest, StorePlan
from fast_electra.store.reader import COMMAND, Stored, open_part, remedy
from fast_electra.training.engines import Ranks
from fast_electra.training.loop import EXAMPLES, REFERENCE, evaluation_size
from fast_electra_kernels import noise


def open_for_run(config: Config, corpus: Corpus, ranks: Ranks) -> tuple[Stored, dict[str, Any]]:
    """Open the store that a config names. Rank 0 checks the contents for all.

    Returns:
        The store, and the facts about its auxiliary that online training would record.

    Raises:
        UserError: see `check_store`.
    """
    assert config.run.replacement.store is not None
    folder = Path(config.run.replacement.store)
    plan = check_store(config, corpus, folder, verify=ranks.rank == 0).plan
    drawn_by = plan.about.get("auxiliary_hash")
    if ranks.rank == 0 and drawn_by and "auxiliary_hash" not in _known_of_auxiliary(config):
        print(f"note: there is no auxiliary model to compare; {folder} was drawn by the one with hash {drawn_by[:12]}")
    return Stored(folder, plan), plan.about


def check_store(config: Config, corpus: Corpus, folder: Path, verify: bool) -> StoreManifest:
    """Return the manifest of a complete store after checking that it fits the run and is undamaged.

    With `verify`, the contents are hashed too; one rank does so for all.

    Raises:
        UserError: the store is missing, not complete or damaged, or was written for another run.
    """
    path = folder / MANIFEST
    missing = f"there is no store in {folder} ({path} is missing): write one with {COMMAND}"
    advice = f"{folder} has no {PLAN}, so it is no store: name another folder"  # the manifest may be that of shards
    if (folder / PLAN).exists():
        advice = remedy(folder)
        missing = f"the store {folder} is not complete: finish it with the command that started it ({COMMAND})"
    manifest = read_settings(path, StoreManifest, missing, advice)
    plan = manifest.plan
    _check_belongs(folder, plan.facts, _facts_of_run(config, corpus, _known_of_auxiliary(config), plan.kind))
    check_files(folder, manifest.parts, remedy(folder), verify)
    if verify:
        _check_parts(folder, plan)
    return manifest


def _check_parts(folder: Path, plan: StorePlan) -> None:
    """Raise a UserError unless each part of the plan is there and was written for this very plan."""
    for part in plan.parts():
        file = open_part(folder, part.name)
        expected = {"store": plan.fingerprint, "kind": plan.kind, "first": part.first}
        if {key: file.label.get(key) for key in expected} != expected:
            raise UserError(
                f"{folder / part.name} was written for another plan than {folder / MANIFEST} has; {remedy(folder)}"
            )


def _check_belongs(folder: Path, stored: Facts, run: Facts) -> None:
    """Raise a UserError that names the first fact in which a store and a run differ."""
    another = f"use another store, or write a new one: {COMMAND}"
    for name, value in run.exact.items():
        if (was := stored.exact.get(name)) != value:
            raise UserError(
                f"the store {folder} does not belong to this run: {name} was {_short(was)} when it was written and is "
                f"{_short(value)} here; set it back, {another}"
            )
    for name, value in run.most.items():
        if (most := stored.most.get(name, 0)) < value:
            raise UserError(
                f"the store {folder} is too small for this run: it covers {name} up to {most:,}, the run asks for "
                f"{value:,}. Lower it, {another}"
            )


def _short(value: str | int | float | None) -> str:
    """Return the first digits of a hash; any other value in full."""
    return value[:12] if isinstance(value, str) and len(value) >= 32 else str(value)


def _known_of_auxiliary(config: Config) -> dict[str, Any]:
    """Return the hash and the dtype of the auxiliary, as far as they are known without loading it."""
    run, known = config.run, dict[str, Any]()
    if run.replacement.from_auxiliary and run.auxiliary is not None:
        if run.auxiliary.dtype != "auto":
            known["auxiliary_dtype"] = run.auxiliary.dtype
        if (found := hash_of(run.auxiliary)) is not None:
            known["auxiliary_hash"] = found
    return known


def _facts_of_run(config: Config, corpus: Corpus, auxiliary: dict[str, Any], kind: StoreKind) -> Facts:
    """Return everything in a run that determines which tokens a store of this kind holds.

    `auxiliary` may have the keys `auxiliary_hash` and `auxiliary_dtype`. A fact that is not known is left out.
    """
    run, batch = config.run, config.sequences
    replacement, curriculum = run.replacement, run.curriculum
    exact: dict[str, Any] = {
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
        exact[f"{SECTION}.replacement.augmentation"] = replacement.augmentation
        exact["the noise of the draws"] = noise.VERSION
        names = {"auxiliary_hash": "the auxiliary model", "auxiliary_dtype": f"{SECTION}.auxiliary.dtype"}
        exact |= {name: auxiliary[key] for key, name in names.items() if key in auxiliary}
    elif replacement.needs_alpha:
        exact[f"{SECTION}.replacement.alpha"] = replacement.alpha

    # An evaluation may read any number of sequences. It reads all of them if the config asks for more than there are.
    there_are = max(len(corpus.heldout or ()), ceil_div(len(corpus.train), REFERENCE))
    most: dict[str, Any] = {f"{SECTION}.evaluation.sequences": min(_heldout_count(config), there_are)}
    if kind == "axis":
        most[f"the training stream ({SECTION}.updates * train_batch_size)"] = run.updates * batch
        most[f"{SECTION}.curriculum.initial"] = curriculum.initial
    else:
        exact |= {f"{SECTION}.curriculum.{name}": value for name, value in curriculum.model_dump().items()}
        exact |= {f"{SECTION}.updates": run.updates, "train_batch_size": batch}
    return Facts(exact=exact, most=most)


def _heldout_count(config: Config) -> int:
    """Return how many held-out sequences need draws: the evaluations read some, and the report shows some."""
    return max(config.run.evaluation.sequences, EXAMPLES)


def plan_store(
    config: Config, corpus: Corpus, distribution: Distribution, auxiliary_facts: dict[str, Any], part: int
) -> tuple[list[float], StorePlan]:
    """Plan the store of a run. Each of its files holds `part` sequences. `parts.build_distribution` gives the facts.

    Returns:
        The strength at each update (none for a store of the kind `axis`), and the plan.

    Raises:
        UserError: the distribution cannot be stored for every strength at once.
    """
    run = config.run
    kind: StoreKind = "axis"
    floor, low, high = distribution.floor, None, None
    strengths: list[float] = []
    if run.curriculum.per == "epoch":
        kind, epoch = "fixed", len(corpus.train)
        strengths = [run.curriculum.strength(config.u(n, epoch), floor) for n in range(1, run.updates + 1)]
    elif isinstance(distribution, LinearDistribution):
        low, high = sorted(axis_position(distribution.parameter, end) for end in (run.curriculum.initial, floor))
    else:
        raise UserError(
            f"draws under fast_electra.replacement.augmentation {run.replacement.augmentation} cannot be stored for "
            "every value at once: hold the value through each epoch with --set fast_electra.curriculum.per=epoch "
            "(here and when training), or train without a store"
        )
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
        facts=_facts_of_run(config, corpus, auxiliary_facts, kind),
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
