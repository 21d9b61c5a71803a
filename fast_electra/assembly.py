"""From a resolved config to the parts of a run: sequences, objective, engine. Every launch script builds them here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fast_electra.config import Config, RunConfig
from fast_electra.corpus.loader import Loader, Split
from fast_electra.corpus.sequences import Sequences
from fast_electra.corpus.shards import Shards
from fast_electra.corpus.tokenizer import Tokenizer
from fast_electra.model.files import load_model
from fast_electra.model.heads import Discriminator, MaskedLanguageModel
from fast_electra.objectives.mlm import MLM
from fast_electra.objectives.rtd import RTD
from fast_electra.replacement.auxiliary import Auxiliary
from fast_electra.settings import UserError
from fast_electra.training.engines import Ranks, inference_engine
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


def build_objective(run: RunConfig, tokenizer: Tokenizer, ranks: Ranks) -> tuple[MLM | RTD, dict[str, Any]]:
    """The objective with its new model, and facts about the auxiliary to record beside what is trained."""
    seed, fraction, mask_id = run.seed, run.corruption.mask_fraction, tokenizer.mask_id
    if run.objective == "mlm":
        model = MaskedLanguageModel(run.model, seed)
        return MLM(model, seed=seed, mask_fraction=fraction, mask_id=mask_id), {}
    auxiliary, facts = load_auxiliary(run, tokenizer, ranks)
    discriminator = Discriminator(run.model, seed)
    rtd = RTD(discriminator, auxiliary, run.curriculum, seed=seed, mask_fraction=fraction, mask_id=mask_id)
    return rtd, facts


def load_auxiliary(run: RunConfig, tokenizer: Tokenizer, ranks: Ranks) -> tuple[Auxiliary, dict[str, Any]]:
    """The frozen auxiliary model in its inference engine."""
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
    dtype = resolve_dtype(run.auxiliary.dtype, "fast_electra.auxiliary.dtype")
    engine = inference_engine(model.to(ranks.device), dtype)
    facts = {"auxiliary_hash": description["hash"], "auxiliary_dtype": dtype}
    if "heldout_mlm_accuracy" in description.get("evaluation", {}):
        facts["heldout_mlm_accuracy"] = description["evaluation"]["heldout_mlm_accuracy"]
    return Auxiliary(engine, model), facts
