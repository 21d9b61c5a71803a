"""Token counts are those of every training document, however the work is divided."""

import math

import numpy as np
import pytest
import torch
from conftest import Corpus

from fast_electra.corpus import frequency
from fast_electra.corpus.frequency import NEVER, log_frequency, token_counts
from fast_electra.corpus.shards import Shards
from fast_electra.settings import UserError


@pytest.fixture(scope="module")
def shards(tiny_corpus: Corpus) -> Shards:
    return Shards.open(tiny_corpus.shards)


def direct(shards: Shards, size: int) -> torch.Tensor:
    tokens = np.concatenate([shards.tokens(i, 0, int(n)) for i, n in enumerate(shards.lengths)])
    return torch.tensor([int((tokens == token).sum()) for token in range(size)])


def test_counts_every_token_once(shards: Shards, tiny_corpus: Corpus) -> None:
    counts = token_counts(shards, tiny_corpus.vocabulary_size)
    assert counts.dtype == torch.int64
    assert torch.equal(counts, direct(shards, tiny_corpus.vocabulary_size))
    assert int(counts.sum()) == int(shards.lengths.sum()) > 50_000


def test_a_wider_vocabulary_has_zeros_at_its_end(shards: Shards, tiny_corpus: Corpus) -> None:
    counts = token_counts(shards, tiny_corpus.vocabulary_size + 24)
    assert torch.equal(counts[:-24], token_counts(shards, tiny_corpus.vocabulary_size))
    assert not counts[-24:].any()


@pytest.mark.parametrize("world", [2, 3, 7, 500])
def test_ranks_divide_the_documents(shards: Shards, world: int) -> None:
    whole = token_counts(shards, 1000)
    parts = [token_counts(shards, 1000, rank, world) for rank in range(world)]
    assert torch.equal(torch.stack(parts).sum(dim=0), whole)
    # No share is more than a document away from its part of the tokens.
    even = int(whole.sum()) / world
    assert max(abs(int(part.sum()) - even) for part in parts) <= int(shards.lengths.max())


@pytest.mark.parametrize("block", [1, 100, 5000])
def test_blocks_cut_documents_anywhere(shards: Shards, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    last = (29, 30)  # of thirty ranks: a document or two
    expected = token_counts(shards, 1000, *last)
    monkeypatch.setattr(frequency, "_BLOCK", block)
    assert torch.equal(token_counts(shards, 1000, *last), expected)
    assert int(expected.sum()) > 1000


def test_log_frequency() -> None:
    log = log_frequency(torch.tensor([3, 0, 1, 12_000_000_000]))
    total = 12_000_000_004
    assert log.dtype == torch.float64
    assert log.tolist() == pytest.approx([math.log(3 / total), NEVER, math.log(1 / total), math.log1p(-4 / total)])
    assert float(log.exp().sum()) == pytest.approx(1.0, abs=1e-12)


def test_an_empty_corpus_is_refused() -> None:
    with pytest.raises(UserError, match="no token"):
        log_frequency(torch.zeros(10, dtype=torch.int64))
