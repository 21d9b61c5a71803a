"""experiments/minimal_pairs.py: where two sentences differ, and how each kind of model scores them."""

import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Corpus
from small import sizes

from fast_electra.batch import Layout
from fast_electra.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from fast_electra.model.heads import Discriminator, MaskedLanguageModel

sys.path.append(str(ROOT / "experiments"))
import minimal_pairs

PAIRS = [
    ("a", "the men who saw him are old", "the men who saw him is old"),
    ("a", "the keys are", "the keys is"),
    ("b", "he has it", "he have it"),
    ("b", "it is is it", "it is it"),  # the common parts of start and end overlap
]


@pytest.fixture(scope="module")
def tokenizer(tiny_corpus: Corpus) -> SentencePieceTokenizer:
    return SentencePieceTokenizer.load(tiny_corpus.tokenizer)


@pytest.fixture(scope="module")
def sentences(tokenizer: SentencePieceTokenizer) -> list[minimal_pairs.Sentence]:
    return [sentence for _, *texts in PAIRS for sentence in minimal_pairs.differences(tokenizer, *texts)]


def test_two_sentences_differ_where_their_own_tokens_are(sentences: list[minimal_pairs.Sentence]) -> None:
    for (good, own), (bad, others) in zip(sentences[::2], sentences[1::2], strict=True):
        assert good[own] != bad[others]
        assert good[: own.start] == bad[: others.start] and good[own.stop :] == bad[others.stop :]
        assert own.stop >= own.start >= 1 and others.stop >= others.start
        if own.stop > own.start and others.stop > others.start:  # no token more could be left out
            assert good[own][0] != bad[others][0] and good[own][-1] != bad[others][-1]


@torch.no_grad()
def test_a_discriminator_multiplies_the_probabilities_of_being_original(
    sentences: list[minimal_pairs.Sentence],
) -> None:
    model = Discriminator.new(sizes(initial_std=0.3), seed=1).eval()
    scores = minimal_pairs.original_scorer(model)(sentences)
    for (ids, _), score in zip(sentences, scores.tolist(), strict=True):
        logits_T = model(torch.tensor(ids), Layout.of(torch.tensor([len(ids)])))
        assert score == pytest.approx((1 - logits_T[1:-1].sigmoid()).log().sum().item(), rel=1e-4)


@torch.no_grad()
def test_a_masked_language_model_predicts_what_the_other_sentence_lacks(
    sentences: list[minimal_pairs.Sentence], tokenizer: SentencePieceTokenizer
) -> None:
    model = MaskedLanguageModel(sizes(initial_std=0.3), seed=1).eval()
    scores = minimal_pairs.masked_scorer(model, tokenizer.mask_id)(sentences)
    for (ids, own), score in zip(sentences, scores.tolist(), strict=True):
        masked, positions_M = torch.tensor(ids), torch.arange(own.start, own.stop)
        masked[positions_M] = tokenizer.mask_id
        logits_MV = model(masked, Layout.of(torch.tensor([len(ids)])), positions_M)
        expected = sum(row.log_softmax(0)[ids[i]].item() for row, i in zip(logits_MV, positions_M, strict=True))
        assert score == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_shares_of_right_preferences(tokenizer: SentencePieceTokenizer) -> None:
    def shorter(some: list[minimal_pairs.Sentence]) -> torch.Tensor:
        return -torch.tensor([float(len(ids)) for ids, _ in some])

    lengths = [tuple(len(tokenizer.encode(text)) for text in texts) for _, *texts in PAIRS]
    right = [good < bad for good, bad in lengths]
    found = minimal_pairs.preferences(shorter, tokenizer, PAIRS)
    assert found == {"all": sum(right) / 4, "a": sum(right[:2]) / 2, "b": sum(right[2:]) / 2}


def test_pairs_are_read_from_tabs_with_their_quotes(tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text("subset\tprefix\tgood\tbad\tlabel\nx\tthe \"men'\tare\tis\t1\n")
    assert minimal_pairs.read_pairs(tmp_path / "pairs.tsv") == [("x", "the \"men' are", "the \"men' is")]
