"""Global batch n is a function of n; ranks and accumulation only divide it."""

import pytest
import small
import torch
from conftest import Corpus
from small import batches

from fast_electra import randomness
from fast_electra.batch import TokenBatch, masked_counts
from fast_electra.corpus.sequences import Sequences


@pytest.fixture(scope="module")
def sequences(tiny_corpus: Corpus) -> Sequences:
    return small.sequences(tiny_corpus, 32)


def named(parts: list[TokenBatch]) -> dict[int, list[int]]:
    """Tokens of each sequence by its noise key, which (seed, epoch, sequence) decide."""
    return {
        int(key): tokens.tolist()
        for part in parts
        for key, tokens in zip(part.layout.keys_B, part.tokens_T.split(part.layout.lengths_B.tolist()), strict=True)
    }


@pytest.mark.parametrize("n", [0, 3, 10_000])
def test_any_division_gives_the_same_global_batch(sequences: Sequences, n: int) -> None:
    whole = batches(sequences, n)
    expected = named(whole)
    assert len(expected) == 24
    for micro, accumulation, ranks in ((12, 1, 2), (3, 4, 2), (6, 2, 2), (2, 3, 4), (1, 24, 1)):
        parts = [
            part
            for rank in range(ranks)
            for part in batches(sequences, n, micro_batch=micro, accumulation=accumulation, ranks=ranks, rank=rank)
        ]
        assert named(parts) == expected
        assert {(part.global_tokens, part.global_masked) for part in parts} == {
            (whole[0].global_tokens, whole[0].global_masked)
        }


def test_global_counts_are_those_of_the_batch(sequences: Sequences) -> None:
    parts = batches(sequences, 5, micro_batch=8, accumulation=3)
    assert parts[0].global_tokens == sum(len(part.tokens_T) for part in parts)
    assert parts[0].global_masked == sum(int(masked_counts(part.layout.lengths_B, 0.15).sum()) for part in parts)


def test_one_epoch_reads_every_sequence_once(sequences: Sequences) -> None:
    count = -(-len(sequences) // 24)
    seen = [key for n in range(count) for key in named(batches(sequences, n))]
    first = set(randomness.key(5, 0, torch.arange(len(sequences))).tolist())
    assert len(set(seen)) == len(seen) == 24 * count
    assert len(first) == len(sequences) == len([key for key in seen if key in first])


def test_masked_counts_are_the_nearest_integers_and_at_least_one() -> None:
    lengths = torch.tensor([3, 5, 12, 66, 512])
    assert masked_counts(lengths, 0.15).tolist() == [1, 1, 2, 10, 77]  # 0.15, 0.45, 1.5, 9.6, 76.5
