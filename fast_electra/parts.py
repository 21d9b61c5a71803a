"""From a resolved config to a `Run`. Every job builds its parts here."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from fast_electra.auxiliary import load_auxiliary
from fast_electra.config import Config, RunConfig
from fast_electra.corpus.corpus import Corpus, open_corpus
from fast_electra.corpus.frequency import log_frequency, token_counts
from fast_electra.corpus.frozen_tokenizer import FrozenTokenizer
from fast_electra.corpus.loader import Loader, SequenceSource, Share
from fast_electra.corpus.same_tokenizer import check_same_tokenizer
from fast_electra.corpus.tokenizer import Tokenizer
from fast_electra.corruption import Masking
from fast_electra.huggingface.folder import identity
from fast_electra.huggingface.main_model import HuggingFaceEncoder
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.heads import Discriminator, MaskedLanguageModel
from fast_electra.model.huggingface import open_main_model
from fast_electra.model.joint import JointModel
from fast_electra.objectives.joint import Joint
from fast_electra.objectives.mlm import MLM
from fast_electra.objectives.objective import Objective
from fast_electra.objectives.rtd import RTD
from fast_electra.replacement.auxiliary import AUGMENTATIONS
from fast_electra.replacement.auxiliary_free import auxiliary_free
from fast_electra.replacement.distribution import Distribution
from fast_electra.run_settings import ResolvedConfig
from fast_electra.store.match import open_for_run
from fast_electra.training.engines import Engine, Ranks, sum_over_ranks, tell, training_engine
from fast_electra.training.loop import Run


@dataclass(frozen=True)
class PretrainingRun(Run):
    """A run on a corpus."""

    config: Config
    corpus: Corpus


def build(config: Config, ranks: Ranks, corpus: Corpus | None = None) -> PretrainingRun:
    """Build everything that trains. The corpus is opened unless it is given."""
    corpus = open_run_corpus(config.run, ranks) if corpus is None else corpus
    objective, facts = build_objective(config, corpus, ranks)
    heldout = corpus.heldout
    sets: dict[str, SequenceSource] = {}
    if heldout is not None:
        sets = {name: heldout if name == "heldout" else corpus.train for name in objective.sources}
    engine = build_engine(config, objective)
    loader = Loader(corpus.train, share_of(config, ranks), config.run.seed, config.run.corruption.mask_fraction)
    facts = {"corpus_hash": corpus.hash, **facts}
    if not isinstance(config.run.model, EncoderSettings):
        facts["existing_hash"] = identity(Path(config.run.model.huggingface))
    return PretrainingRun(config, ranks, objective, engine, loader, sets, facts, corpus.tokenizer.hash, corpus)


def build_engine(config: ResolvedConfig, objective: Objective) -> Engine:
    """Give the objective's model to DeepSpeed."""
    limit = timedelta(minutes=config.run.wait_minutes)
    engine = training_engine(objective.model, config.deepspeed, limit, config.apex)
    engine.train()
    return engine


def share_of(config: ResolvedConfig, ranks: Ranks) -> Share:
    """Return this rank's share of each global batch."""
    micro_batch, steps = (
        config.deepspeed[key] for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    )
    return Share(micro_batch, steps, ranks.world, ranks.rank)


def open_run_corpus(run: RunConfig, ranks: Ranks | None = None) -> Corpus:
    """Open the corpus of a run. Rank 0 hashes its contents for all; without ranks nobody does."""
    return open_corpus(run.corpus, run.vocabulary_size, verify=ranks is not None and ranks.rank == 0)


def masking(run: RunConfig, tokenizer: Tokenizer) -> Masking:
    """Return which positions a run masks."""
    return Masking(run.corruption.mask_fraction, tokenizer.mask_id)


def build_objective(config: Config, corpus: Corpus, ranks: Ranks) -> tuple[Objective, dict[str, Any]]:
    """Build the objective with its new model. Also return facts about its replacements, to record with the run."""
    run, chosen = config.run, masking(config.run, corpus.tokenizer)
    if run.objective == "mlm":
        assert isinstance(run.model, EncoderSettings)
        return MLM(MaskedLanguageModel(run.model, run.seed), chosen), {}
    if run.objective == "joint":
        assert isinstance(run.model, EncoderSettings) and run.joint is not None
        model = JointModel(run.model, run.joint.auxiliary_layers, run.joint.embedding_sharing, run.seed)
        return Joint(model, run.joint, chosen), {}
    main = new_main_model(config, corpus, ranks)  # first: the auxiliary takes longer, as it is tried
    distribution: Distribution
    if run.replacement.store is not None:
        distribution, facts = open_for_run(config, corpus, ranks)
    else:
        distribution, facts = build_distribution(config, corpus, ranks)
    return RTD(main, distribution, run.curriculum, chosen), facts


def new_main_model(config: Config, corpus: Corpus, ranks: Ranks) -> Discriminator:
    """Return the main model before its training: a new one of our own, or an existing encoder with a head."""
    run, tokenizer = config.run, corpus.tokenizer
    if isinstance(run.model, EncoderSettings):
        return Discriminator.new(run.model, run.seed)
    length = run.corpus.sequence_length
    model, notes = open_main_model(run.model, tokenizer.vocabulary_size, tokenizer.pad_id, length, run.seed)
    place = Path(run.model.huggingface)
    if place.is_dir() and (note := check_same_tokenizer(place, corpus)):
        notes.append(note)
    encoder = model.encoder
    if isinstance(encoder, HuggingFaceEncoder) and isinstance(tokenizer, FrozenTokenizer) and not encoder.tokenizer:
        encoder.tokenizer = tokenizer.hugging_face_files()
    tell(notes, ranks)
    return model


def build_distribution(config: Config, corpus: Corpus, ranks: Ranks) -> tuple[Distribution, dict[str, Any]]:
    """Build what draws the replacements. Also return facts about it: the auxiliary's hash, precision and accuracy."""
    replacement, size = config.run.replacement, corpus.tokenizer.vocabulary_size
    log_frequency_V = None
    if replacement.needs_frequency:  # log p_TF over the training documents; the ranks share the counting
        counts_V = token_counts(corpus.train.shards, size, ranks.rank, ranks.world).to(ranks.device)
        log_frequency_V = log_frequency(sum_over_ranks(counts_V))
    if replacement.from_auxiliary:
        model, facts = load_auxiliary(config, corpus, masking(config.run, corpus.tokenizer), ranks)
        return AUGMENTATIONS[replacement.augmentation](model, corpus.tokenizer.unk_id, log_frequency_V), facts
    return auxiliary_free(replacement.distribution, size, replacement.alpha, log_frequency_V, ranks.device), {}
