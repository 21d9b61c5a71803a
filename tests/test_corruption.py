"""The invariants of replaced-token detection that trainers get wrong, on real text and a real auxiliary model."""

from collections import Counter

import pytest
import torch
from conftest import Corpus
from scipy import stats

from fast_electra import randomness
from fast_electra.batch import CorruptedBatch, MaskedBatch, TokenBatch, masked_counts
from fast_electra.corpus.loader import Loader, Share, read_batch
from fast_electra.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from fast_electra.corpus.sequences import Sequences
from fast_electra.corpus.shards import Shards
from fast_electra.corruption import Masking, corrupt, mask
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.heads import MaskedLanguageModel
from fast_electra.replacement.auxiliary import Auxiliary, Temperature

MASK, SPECIALS = 4, (0, 2, 3)  # [MASK]; [PAD], [CLS], [SEP]


@pytest.fixture(scope="module")
def auxiliary(tiny_corpus: Corpus) -> Auxiliary:
    """Untrained, with weights large enough that its distributions are far from uniform."""
    sizes = EncoderSettings(
        vocabulary_size=tiny_corpus.vocabulary_size, layers=1, hidden_size=32, ffn_size=64, heads=2, initial_std=0.4
    )
    model = MaskedLanguageModel(sizes, seed=7).eval()
    return Temperature(model, unk_id=1)


@pytest.fixture(scope="module")
def sequences(tiny_corpus: Corpus) -> Sequences:
    return Sequences(Shards.open(tiny_corpus.shards), SentencePieceTokenizer.load(tiny_corpus.tokenizer), 48)


def batches(sequences: Sequences, count: int, seed: int = 5, **split: int) -> list[TokenBatch]:
    loader = Loader(sequences, Share(**({"micro_batch": 32, "accumulation": 1} | split)), seed, mask_fraction=0.15)
    return [part for n in range(count) for part in loader.batch(n)]


def corrupted(auxiliary: Auxiliary, batch: TokenBatch, temperature: float = 1.0) -> CorruptedBatch:
    return corrupt(batch, Masking(0.15, MASK), auxiliary, temperature)


def test_corrupted_differs_only_at_masked_positions(auxiliary: Auxiliary, sequences: Sequences) -> None:
    for batch in batches(sequences, 10):
        result = corrupted(auxiliary, batch)
        untouched = torch.ones(len(batch.tokens_T), dtype=torch.bool)
        untouched[result.masked.positions_M] = False
        assert torch.equal(result.tokens_T[untouched], batch.tokens_T[untouched])
        assert torch.equal(result.tokens_T[result.masked.positions_M], result.draws.tokens_M)
        assert (result.masked.tokens_T[result.masked.positions_M] == MASK).all()
        assert torch.equal(result.masked.tokens_T[untouched], batch.tokens_T[untouched])


def test_the_auxiliary_reads_the_masked_sequence_not_the_original(auxiliary: Auxiliary, sequences: Sequences) -> None:
    """What stood at a masked position cannot change what is drawn there."""
    batch = batches(sequences, 1)[0]
    masked = corrupted(auxiliary, batch).masked
    other = batch.tokens_T.index_fill(0, masked.positions_M, 99)
    changed = TokenBatch(**{**vars(batch), "tokens_T": other})
    assert torch.equal(corrupted(auxiliary, changed).draws.tokens_M, corrupted(auxiliary, batch).draws.tokens_M)


def test_labels_say_exactly_where_the_token_changed(auxiliary: Auxiliary, sequences: Sequences) -> None:
    lucky = 0
    for batch in batches(sequences, 60):
        result = corrupted(auxiliary, batch)
        original_M = batch.tokens_T[result.masked.positions_M]
        labels_M = result.replaced_T[result.masked.positions_M]
        lucky += int((result.draws.tokens_M == original_M).sum())
        assert torch.equal(labels_M, result.draws.tokens_M != original_M)
        assert result.replaced_T.sum() == labels_M.sum()  # no label elsewhere
    assert lucky > 0  # so the case "drawn token equals the original" was seen, and labelled original


def test_specials_are_never_masked(auxiliary: Auxiliary, sequences: Sequences) -> None:
    for batch in batches(sequences, 20):
        masked = corrupted(auxiliary, batch).masked
        original_M = batch.tokens_T[masked.positions_M]
        assert not torch.isin(original_M, torch.tensor(SPECIALS)).any()


def test_mask_fraction_is_exact_and_positions_are_uniform(auxiliary: Auxiliary, sequences: Sequences) -> None:
    parts, seen, rows = batches(sequences, 60), Counter[int](), 0
    length = int(torch.cat([part.layout.lengths_B for part in parts]).mode().values)
    for batch in parts:
        masked = corrupted(auxiliary, batch).masked
        lengths_B = batch.layout.lengths_B
        row_M, column_M = batch.layout.sequence_T[masked.positions_M], batch.layout.position_T[masked.positions_M]
        counts = torch.bincount(row_M, minlength=len(lengths_B))
        assert torch.equal(counts, masked_counts(lengths_B, 0.15))
        assert len(set(masked.positions_M.tolist())) == len(masked.positions_M)
        same = lengths_B == length
        rows += int(same.sum())
        seen.update(column_M[same[row_M]].tolist())
    counts_by_column = [seen[column] for column in range(1, length - 1)]
    assert rows > 300 and stats.chisquare(counts_by_column).pvalue > 1e-3  # conservative: without replacement


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_replacements_are_sampled_from_the_smoothed_distribution(
    auxiliary: Auxiliary, sequences: Sequences, temperature: float
) -> None:
    """Eq. 1, end to end, by a chi-square test: 120,000 draws at four positions; error rate 0.1% a temperature."""
    batch = batches(sequences, 1, micro_batch=1)[0]
    positions_M = corrupted(auxiliary, batch).masked.positions_M[:4]
    logits_MV = (
        auxiliary.model(corrupted(auxiliary, batch).masked.tokens_T, batch.layout, positions_M).double().detach()
    )
    expected = (torch.softmax(logits_MV / temperature, 1)).sum(0)
    # The noise is keyed by the epoch too; masking by hand keeps the positions, so only the draw differs.
    draws = torch.cat([_draw(auxiliary, batch, positions_M, temperature, epoch) for epoch in range(300)])
    counts = torch.bincount(draws, minlength=len(expected)).double()
    expected = expected * len(draws) / 4
    large = expected >= 5  # the rest together in one cell, as the test's approximation wants
    cells = (
        torch.cat([counts[large], counts[~large].sum()[None]]),
        torch.cat([expected[large], expected[~large].sum()[None]]),
    )
    assert stats.chisquare(*[cell.numpy() for cell in cells]).pvalue > 1e-3


def _draw(
    auxiliary: Auxiliary, batch: TokenBatch, positions_M: torch.Tensor, temperature: float, epoch: int
) -> torch.Tensor:
    """100 draws for each of the four positions, with keys of their own."""
    masked = corrupted(auxiliary, batch).masked
    keys = randomness.key(randomness.REPLACEMENT, epoch, torch.arange(100)[:, None], torch.arange(4)).flatten()
    again = MaskedBatch(batch, masked.tokens_T, positions_M.repeat(100), keys)
    return auxiliary.sample(again, temperature).tokens_M


def test_replacements_are_not_the_argmax(auxiliary: Auxiliary, sequences: Sequences) -> None:
    batch = batches(sequences, 1)[0]
    result = corrupted(auxiliary, batch, temperature=2.0)
    logits_MV = auxiliary.model(result.masked.tokens_T, batch.layout, result.masked.positions_M)
    assert float((result.draws.tokens_M == logits_MV.argmax(1)).float().mean()) < 0.9


def test_higher_temperature_replaces_more(auxiliary: Auxiliary, sequences: Sequences) -> None:
    parts = batches(sequences, 20)
    fractions = [
        sum(int(corrupted(auxiliary, batch, temperature).replaced_T.sum()) for batch in parts)
        for temperature in (0.25, 8.0)
    ]
    assert fractions[0] < fractions[1]


def test_every_division_of_a_batch_is_corrupted_alike(auxiliary: Auxiliary, sequences: Sequences) -> None:
    """One process with batch 2n and two with batch n, or accumulation, see the same corrupted tokens."""
    expected = by_sequence([corrupted(auxiliary, batch) for batch in batches(sequences, 3)])
    for split in ({"micro_batch": 16, "ranks": 2}, {"micro_batch": 4, "accumulation": 4, "ranks": 2}):
        parts = [part for rank in range(2) for part in batches(sequences, 3, **split, rank=rank)]
        assert by_sequence([corrupted(auxiliary, part) for part in parts]) == expected


def by_sequence(results: list[CorruptedBatch]) -> dict[int, list[int]]:
    found = {}
    for result in results:
        layout = result.masked.layout
        for key, tokens in zip(layout.keys_B, result.tokens_T.split(layout.lengths_B.tolist()), strict=True):
            found[int(key)] = tokens.tolist()
    return found


def test_auxiliary_is_trained_on_other_masks_than_it_fills(sequences: Sequences) -> None:
    """With one seed for both, it would be asked for just the tokens that it was fitted to."""
    batch = batches(sequences, 1)[0]
    own, filled = (
        set(mask(batch, Masking(0.15, MASK), stream).positions_M.tolist())
        for stream in (randomness.MASK_OF_MLM, randomness.MASK)
    )
    assert len(own & filled) < 0.3 * len(own)


def test_epochs_and_seeds_mask_and_replace_anew(auxiliary: Auxiliary, sequences: Sequences) -> None:
    batch, samples = batches(sequences, 1)[0], torch.arange(32)
    which, epochs = sequences.order(5, 0, 32)
    first = corrupted(auxiliary, batch)
    for seed, epoch in ((5, 0), (5, 1), (6, 0)):
        again = read_batch(sequences, seed, samples, which, epochs + epoch)
        assert torch.equal(again.tokens_T, batch.tokens_T)
        result = corrupted(auxiliary, again)
        if (seed, epoch) == (5, 0):
            assert torch.equal(result.tokens_T, first.tokens_T)
            continue
        assert not torch.equal(result.masked.positions_M.sort().values, first.masked.positions_M.sort().values)
