"""From a resolved config to the parts of a run: sequences, objective, engine. Every launch script builds them here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fast_electra.config import Config, RunConfig
from fast_electra.corpus.frequency import log_frequency, token_counts
from fast_electra.corpus.loader import Loader, Split
from fast_electra.corpus.sequences import Sequences
from fast_electra.corpus.shards import Shards
from fast_electra.corpus.tokenizer import Tokenizer
from fast_electra.model.files import load_model
from fast_electra.model.heads import Discriminator, MaskedLanguageModel
from fast_electra.model.joint import JointModel
from fast_electra.objectives.joint import Joint
from fast_electra.objectives.mlm import MLM
from fast_electra.objectives.rtd import RTD
from fast_electra.replacement.auxiliary import AUGMENTATIONS
from fast_electra.replacement.auxiliary_free import auxiliary_free
from fast_electra.replacement.distribution import Distribution
from fast_electra.settings import UserError
from fast_electra.store.match import open_for_run
from fast_electra.training.engines import Engine, Ranks, inference_engine, sum_over_ranks
from fast_electra.training.precision import resolve_dtype


@dataclass(frozen=True)
class Corpus:
    """The sequences to train on, and those held out (None where the corpus has none)."""

    tokenizer: Tokenizer
    train: Sequences
    heldout: Sequences | None
    hash: str


def open_corpus(run: RunConfig, verify: bool) -> Corpus:
    """Opens tokenizer and shards, and checks that they belong to each other and to the model."""
    tokenizer = Tokenizer.load(Path(run.corpus.tokenizer))
    if tokenizer.vocabulary_size != run.model.vocabulary_size:
        raise UserError(
            f"{run.corpus.tokenizer} has {tokenizer.vocabulary_size} entries and fast_electra.model.vocabulary_size is "
            f"{run.model.vocabulary_size}: train a tokenizer with `--vocabulary {run.model.vocabulary_size}`, or use "
            f"--set fast_electra.model.vocabulary_size={tokenizer.vocabulary_size}"
        )
    shards = Path(run.corpus.shards)
    train = Shards.open(shards, "train", verify=verify)  # checks the files of both splits
    length = run.corpus.sequence_length
    heldout = None
    if train.manifest.splits.get("heldout"):
        heldout = Sequences(Shards.open(shards, "heldout", verify=False), tokenizer, length)
    return Corpus(tokenizer, Sequences(train, tokenizer, length), heldout, train.hash)


def build_loader(config: Config, corpus: Corpus, ranks: Ranks) -> Loader:
    split = Split(
        micro_batch=config.deepspeed["train_micro_batch_size_per_gpu"],
        accumulation=config.deepspeed["gradient_accumulation_steps"],
        ranks=ranks.world,
        rank=ranks.rank,
    )
    return Loader(corpus.train, split, config.run.seed, config.run.corruption.mask_fraction)


def build_objective(config: Config, corpus: Corpus, ranks: Ranks) -> tuple[MLM | RTD | Joint, dict[str, Any]]:
    """The objective with its new model, and facts about the replacements to record beside what is trained."""
    run = config.run
    noise: dict[str, Any] = {
        "seed": run.seed,
        "mask_fraction": run.corruption.mask_fraction,
        "mask_id": corpus.tokenizer.mask_id,
    }
    if run.objective == "mlm":
        return MLM(MaskedLanguageModel(run.model, run.seed), **noise), {}
    if run.objective == "joint":
        assert run.joint is not None
        model = JointModel(run.model, run.joint.auxiliary_layers, run.joint.embedding_sharing, run.seed)
        return Joint(model, run.joint, **noise), {}
    distribution: Distribution
    if run.replacement.store is not None:
        distribution, facts = open_for_run(config, corpus, ranks)
    else:
        distribution, facts = build_distribution(run, corpus, ranks)
    return RTD(Discriminator(run.model, run.seed), distribution, run.curriculum, **noise), facts


def build_distribution(run: RunConfig, corpus: Corpus, ranks: Ranks) -> tuple[Distribution, dict[str, Any]]:
    """Where replacements come from, and facts about it: the auxiliary's hash, precision and accuracy."""
    replacement = run.replacement
    log_frequency_V = None
    if "term_frequency" in replacement.distribution or "term_frequency" in replacement.augmentation:
        log_frequency_V = term_frequency(corpus, ranks)
    if replacement.distribution == "auxiliary":
        engine, model, facts = load_auxiliary(run, corpus.tokenizer, ranks)
        return AUGMENTATIONS[replacement.augmentation](engine, model, log_frequency_V), facts
    size = corpus.tokenizer.vocabulary_size
    return auxiliary_free(replacement.distribution, size, replacement.alpha, log_frequency_V, ranks.device), {}


def term_frequency(corpus: Corpus, ranks: Ranks) -> Tensor:
    """log p_TF over the training documents, [V], on the device; the ranks share the counting."""
    shards, size = corpus.train.shards, corpus.tokenizer.vocabulary_size
    counts_V = token_counts(shards, size, ranks.rank, ranks.world).to(ranks.device)
    return log_frequency(sum_over_ranks(counts_V))


def load_auxiliary(
    run: RunConfig, tokenizer: Tokenizer, ranks: Ranks
) -> tuple[Engine, MaskedLanguageModel, dict[str, Any]]:
    """The frozen auxiliary model in its inference engine, the model itself, and facts about it."""
    model, description = open_auxiliary(run, tokenizer)
    assert run.auxiliary is not None
    dtype = resolve_dtype(run.auxiliary.dtype, "fast_electra.auxiliary.dtype")
    facts = {"auxiliary_hash": description["hash"], "auxiliary_dtype": dtype}
    if "heldout_mlm_accuracy" in description.get("evaluation", {}):
        facts["heldout_mlm_accuracy"] = description["evaluation"]["heldout_mlm_accuracy"]
    return inference_engine(model.to(ranks.device), dtype, run.auxiliary.cuda_graph), model, facts


def open_auxiliary(run: RunConfig, tokenizer: Tokenizer) -> tuple[MaskedLanguageModel, dict[str, Any]]:
    """The auxiliary model in fp32 on the CPU, and its description; refused if its tokenizer is another."""
    assert run.auxiliary is not None and run.auxiliary.run is not None
    command = f"deepspeed launch/pretrain.py --deepspeed_config ds_configs/{run.recipe}_auxiliary.json"
    remedy = f"train the auxiliary first ({command}) and name its run folder in fast_electra.auxiliary.run"
    folder = Path(run.auxiliary.run) / "model"
    model, description = load_model(folder, "mlm", remedy)
    if description["tokenizer"] != tokenizer.hash:
        raise UserError(
            f"the auxiliary in {folder} was trained with another tokenizer (sha256 {description['tokenizer'][:12]}) "
            f"than {run.corpus.tokenizer} ({tokenizer.hash[:12]}); use the corpus that it was trained on, or {remedy}"
        )
    return model, description
