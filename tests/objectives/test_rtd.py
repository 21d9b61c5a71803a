"""The losses are the paper's, their shares add up to the global mean, and the figures beside them are right."""

import pytest
import torch
import torch.nn.functional as F
from conftest import Corpus
from sklearn.metrics import precision_score, recall_score, roc_auc_score

from fast_electra.batch import Layout
from fast_electra.corpus.loader import Loader, Share
from fast_electra.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from fast_electra.corpus.sequences import Sequences
from fast_electra.corpus.shards import Shards
from fast_electra.corruption import Masking
from fast_electra.curriculum import CurriculumSettings
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.heads import Discriminator, MaskedLanguageModel
from fast_electra.objectives.detection import auc, auc_token_identity
from fast_electra.objectives.mlm import MLM
from fast_electra.objectives.rtd import RTD
from fast_electra.replacement.auxiliary import Temperature

MASKING = Masking(fraction=0.15, mask_id=4)


@pytest.fixture(scope="module")
def sequences(tiny_corpus: Corpus) -> Sequences:
    return Sequences(Shards.open(tiny_corpus.shards), SentencePieceTokenizer.load(tiny_corpus.tokenizer), 40)


@pytest.fixture(scope="module")
def sizes(tiny_corpus: Corpus) -> EncoderSettings:
    return EncoderSettings(
        vocabulary_size=tiny_corpus.vocabulary_size, layers=1, hidden_size=32, ffn_size=64, heads=2, initial_std=0.3
    )


@pytest.fixture(scope="module")
def rtd(sizes: EncoderSettings) -> RTD:
    model = MaskedLanguageModel(sizes, seed=1).eval()
    return RTD(Discriminator.new(sizes, seed=3).eval(), Temperature(model, unk_id=1), CurriculumSettings(), MASKING)


@torch.no_grad()
def test_rtd_loss_is_the_mean_over_all_real_tokens(rtd: RTD, sequences: Sequences) -> None:
    parts = Loader(sequences, Share(4, 4), 2, 0.15).batch(1)
    share = sum(rtd.loss(rtd.model, part, 1.5)[0] for part in parts)
    losses = []
    for part in parts:
        corrupted = rtd.judge(rtd.model, part, 1.5).corrupted
        lengths = part.layout.lengths_B.tolist()
        for tokens, replaced in zip(
            corrupted.tokens_T.split(lengths), corrupted.replaced_T.split(lengths), strict=True
        ):
            logits = rtd.model(tokens, Layout.of(torch.tensor([len(tokens)])))
            losses.append(F.binary_cross_entropy_with_logits(logits, replaced.float(), reduction="none"))
    assert float(share) == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)


@torch.no_grad()
def test_mlm_loss_is_the_mean_over_masked_positions(sizes: EncoderSettings, sequences: Sequences) -> None:
    mlm = MLM(MaskedLanguageModel(sizes, seed=4).eval(), MASKING)
    one = Loader(sequences, Share(16, 1), 2, 0.15).batch(1)[0]
    loss, sums = mlm.loss(mlm.model, one, None)
    parts = Loader(sequences, Share(4, 4), 2, 0.15).batch(1)
    assert float(sum(mlm.loss(mlm.model, part, None)[0] for part in parts)) == pytest.approx(float(loss), rel=1e-5)
    row = mlm.summary(sums)
    assert row["loss"] == pytest.approx(float(loss), rel=1e-6) and int(sums["masked"]) == one.global_masked
    assert 0 <= row["accuracy"] <= 1


def test_figures_agree_with_scikit_learn(rtd: RTD, sequences: Sequences) -> None:
    batch = Loader(sequences, Share(64, 1), 2, 0.15).batch(0)[0]
    row = rtd.summary(rtd.loss(rtd.model, batch, 1.0)[1])
    corrupted, logits_T = rtd.judge(rtd.model, batch, 1.0)
    logits, labels = logits_T.detach(), corrupted.replaced_T
    assert row["auc"] == pytest.approx(roc_auc_score(labels, logits), abs=2e-3)
    assert row["replaced_fraction"] == pytest.approx(float(labels.float().mean()))
    assert row["recall"] == pytest.approx(recall_score(labels, logits > 0))
    assert row["precision"] == pytest.approx(precision_score(labels, logits > 0))


def test_auc_counts_ties_half_and_knows_empty_classes() -> None:
    assert auc(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0])) == 0.75
    assert auc(torch.tensor([3.0]), torch.tensor([5.0])) == 0.5
    assert auc(torch.tensor([3.0]), torch.tensor([0.0])) is None


def test_token_identity_auc_is_the_best_of_any_score_of_the_token() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 6, (500,), generator=generator)
    labels = torch.rand(500, generator=generator) < tokens / 10
    kept, replaced = (torch.bincount(tokens[labels == label], minlength=6).double() for label in (False, True))
    counts = torch.stack([kept, replaced])
    best = auc_token_identity(counts, 1e6 * counts)  # so large a reference that it is the truth
    rate = replaced / (kept + replaced)
    assert best == pytest.approx(roc_auc_score(labels, rate[tokens]))
    for _ in range(20):
        assert roc_auc_score(labels, torch.rand(6, generator=generator)[tokens]) <= best


def test_token_identity_auc_is_not_fooled_by_rare_tokens() -> None:
    """Labels that the token says nothing of: estimated on the tokens judged, the AUC would be near 1."""
    generator = torch.Generator().manual_seed(1)

    def counts(size: int) -> torch.Tensor:
        tokens, labels = (
            torch.randint(0, 2000, (size,), generator=generator),
            torch.rand(size, generator=generator) < 0.1,
        )
        return torch.stack(
            [torch.bincount(tokens[labels == label], minlength=2000).double() for label in (False, True)]
        )

    heldout = counts(4000)
    assert abs(auc_token_identity(heldout, counts(40_000)) - 0.5) < 0.05
    assert auc_token_identity(heldout, 1e6 * heldout) > 0.9
