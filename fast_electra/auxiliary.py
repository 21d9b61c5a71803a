"""The frozen auxiliary of a run: one of ours, or any masked language model of Hugging Face (section 2).

open_auxiliary -> inference_engine -> check_sense
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fast_electra.config import Config, RunConfig
from fast_electra.corpus.corpus import Corpus
from fast_electra.corpus.same_tokenizer import check_same_tokenizer
from fast_electra.corruption import Masking, mask
from fast_electra.huggingface import folder as huggingface
from fast_electra.huggingface.masked_lm import HuggingFaceMaskedLM, open_masked_lm
from fast_electra.huggingface.sizes import sizes_of
from fast_electra.model.files import describe, load_model
from fast_electra.model.heads import MaskedLanguageModel
from fast_electra.replacement.auxiliary import Temperature
from fast_electra.replacement.settings import AuxiliarySettings
from fast_electra.run_settings import SECTION
from fast_electra.settings import UserError
from fast_electra.training.engines import Ranks, inference_engine, sum_over_ranks, tell
from fast_electra.training.graphs import ReplayedModel
from fast_electra.training.loop import evaluation_batch

SENSE_TOKENS, SENSE_BATCH = 32_768, 16  # of `check_sense`: tokens that it reads, and sequences at a time
UNIGRAM_SEQUENCES = 4096  # on which frequencies are counted


AnyAuxiliary = MaskedLanguageModel | HuggingFaceMaskedLM


class OpenedAuxiliary(NamedTuple):
    """An auxiliary model in fp32 on the CPU."""

    model: AnyAuxiliary
    place: Path
    hash: str
    encoder: dict[str, Any]  # its sizes, as `EncoderSettings` names them
    accuracy: float | None  # on held-out text, when it was trained; None if it is not known
    notes: list[str]  # what a user should know, a line each


def open_auxiliary(run: RunConfig, corpus: Corpus) -> OpenedAuxiliary:
    """Open the auxiliary model that a config names.

    Raises:
        UserError: there is none, it is damaged, or its tokenizer is another than the corpus's.
    """
    assert run.auxiliary is not None and run.auxiliary.named
    tokenizer = corpus.tokenizer
    if run.auxiliary.huggingface is not None:
        folder = Path(run.auxiliary.huggingface)
        huggingface.check_safe(folder)
        note = check_same_tokenizer(folder, corpus)
        size, length = tokenizer.vocabulary_size, run.corpus.sequence_length
        model, notes = open_masked_lm(folder, size, tokenizer.pad_id, tokenizer.never_drawn, length)
        notes += [] if note is None else [note]
        return OpenedAuxiliary(model, folder, huggingface.identity(folder), sizes_of(folder), None, notes)
    assert run.auxiliary.run is not None
    command = f"deepspeed launch/pretrain.py --deepspeed_config ds_configs/{run.recipe}_auxiliary.json"
    remedy = f"train the auxiliary first ({command}) and name its run folder in fast_electra.auxiliary.run"
    folder = Path(run.auxiliary.run) / "model"
    ours, description = load_model(folder, "mlm", remedy)
    if description["tokenizer"] != tokenizer.hash:
        raise UserError(
            f"the auxiliary in {folder} was trained with another tokenizer (sha256 {description['tokenizer'][:12]}) "
            f"than {run.corpus.tokenizer} ({tokenizer.hash[:12]}); use the corpus that it was trained on, or {remedy}"
        )
    accuracy = description["evaluation"].get("heldout_mlm_accuracy")
    return OpenedAuxiliary(ours, Path(run.auxiliary.run), description["hash"], description["encoder"], accuracy, [])


def hash_of(settings: AuxiliarySettings) -> str | None:
    """Return the hash of the auxiliary that a config names, without loading it; None if there is none."""
    if settings.huggingface is not None:
        folder = Path(settings.huggingface)
        return huggingface.identity(folder) if huggingface.holds_model(folder) else None
    description = describe(Path(settings.run) / "model") if settings.run is not None else None
    return None if description is None else str(description["hash"])


def load_auxiliary(
    config: Config, corpus: Corpus, masking: Masking, ranks: Ranks
) -> tuple[ReplayedModel, dict[str, Any]]:
    """Load the frozen auxiliary model into its inference engine, and return it with facts about it."""
    settings, opened = config.run.auxiliary, open_auxiliary(config.run, corpus)
    assert settings is not None
    facts: dict[str, Any] = {"auxiliary_hash": opened.hash, "auxiliary_dtype": config.auxiliary_dtype}
    if opened.accuracy is not None:
        facts["heldout_mlm_accuracy"] = opened.accuracy
    model = inference_engine(opened.model.to(ranks.device), config.auxiliary_dtype, settings.cuda_graph)
    notes = opened.notes
    if settings.huggingface is not None:
        notes = [*notes, check_sense(model, corpus, masking, ranks, f"{opened.place}", settings.accept_weak)]
    tell(notes, ranks)
    return model, facts


@torch.no_grad()
def check_sense(
    model: ReplayedModel, corpus: Corpus, masking: Masking, ranks: Ranks, name: str, accept_weak: bool
) -> str:
    """Compare an auxiliary with the frequency of tokens, on the held-out text, and say the result in one line.

    This finds a head that was never trained, and the tokenizer of another model.

    Raises:
        UserError: the auxiliary predicts no better, and `accept_weak` is False.
    """
    source, sequences = ("heldout", corpus.heldout) if corpus.heldout is not None else ("reference", corpus.train)
    count = min(len(sequences), max(SENSE_BATCH, SENSE_TOKENS // sequences.length))
    temperature, sums_3 = Temperature(model, None), torch.zeros(3, dtype=torch.float64, device=ranks.device)
    log_frequency_V = _log_frequency(corpus).to(ranks.device)
    for samples in torch.arange(count).split(SENSE_BATCH)[ranks.rank :: ranks.world]:
        masked = mask(evaluation_batch(sequences, source, samples, 0).to(ranks.device), masking)
        probability_M = temperature.sample(masked, 1.0).original_probability_M
        assert probability_M is not None
        known_M = probability_M > 0  # a token that is never drawn has none
        loss_M = -probability_M[known_M].double().log()
        sums_3 += torch.stack([known_M.sum(), loss_M.sum(), -log_frequency_V[masked.original_M[known_M]].sum()])
    positions, loss, unigram = sum_over_ranks(sums_3).tolist()
    loss, unigram = loss / max(positions, 1), unigram / max(positions, 1)
    kind = "held-out" if source == "heldout" else "training"
    found = f"{name}: loss {loss:.2f} at {positions:,.0f} masked positions of {kind} text, {unigram:.2f} by frequency"
    if not loss < unigram and not accept_weak:
        raise UserError(
            f"{found}: it predicts no better than the frequency of tokens. Was its head trained, and is the corpus's "
            f"tokenizer its own? To use it all the same, --set {SECTION}.auxiliary.accept_weak=true"
        )
    return found


def _log_frequency(corpus: Corpus) -> Tensor:
    """Return the log of the frequency of each token in the first training sequences, each counted once more."""
    tokens_T = corpus.train.tokens(torch.arange(min(len(corpus.train), UNIGRAM_SEQUENCES)))
    counts_V = torch.bincount(tokens_T, minlength=corpus.tokenizer.vocabulary_size).double() + 1
    return counts_V.log() - math.log(float(counts_V.sum()))
