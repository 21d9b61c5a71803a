"""Documents are cut, never joined, never truncated; order is a function of (seed, epoch)."""

import numpy as np
import pytest
import small
import torch
from conftest import Corpus

from fast_electra.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from fast_electra.corpus.sequences import Sequences
from fast_electra.settings import UserError

LENGTH = 48


@pytest.fixture(scope="module")
def sequences(tiny_corpus: Corpus) -> Sequences:
    return small.sequences(tiny_corpus, LENGTH)


def test_sequences_put_together_are_the_documents(sequences: Sequences) -> None:
    tokens = sequences.tokens(torch.arange(len(sequences)))
    lengths = sequences.lengths(torch.arange(len(sequences)))
    contents = [part[1:-1].tolist() for part in tokens.split(lengths.tolist())]
    number = 0
    for document, size in enumerate(sequences.shards.lengths.tolist()):
        pieces = -(-size // (LENGTH - 2))
        expected = sequences.shards.tokens(document, 0, size).tolist()
        own = contents[number : number + pieces]
        assert [token for piece in own for token in piece] == expected
        assert max(map(len, own)) - min(map(len, own)) <= 1  # no short tails
        number += pieces
    assert number == len(sequences)


def test_frame(sequences: Sequences) -> None:
    which = torch.arange(0, len(sequences), 7)
    tokens, lengths = sequences.tokens(which), sequences.lengths(which)
    assert tokens.dtype == torch.int64 and int(lengths.max()) <= LENGTH
    for part in tokens.split(lengths.tolist()):
        assert part[0] == 2 and part[-1] == 3
        assert not set(part[1:-1].tolist()) & {0, 2, 3, 4}


def test_short_documents_are_left_out_and_counted(sequences: Sequences) -> None:
    sizes = sequences.shards.lengths
    minimum = int(np.sort(sizes)[3]) + 1
    cut = Sequences(sequences.shards, sequences.tokenizer, LENGTH, minimum=minimum)
    short = sizes[sizes < minimum]
    assert len(short) >= 4
    assert cut.dropped == (len(short), int(short.sum()))
    kept = int(sum(cut.lengths(torch.arange(len(cut))) - 2))
    assert kept + cut.dropped.tokens == int(sizes.sum())


def test_each_epoch_is_a_new_order_of_all_sequences(sequences: Sequences) -> None:
    size = len(sequences)
    which, epoch = sequences.order(3, 0, 2 * size)
    assert torch.equal(epoch, torch.arange(2 * size) // size)
    first, second = which[:size], which[size:]
    assert torch.equal(first.sort().values, torch.arange(size)) and torch.equal(
        second.sort().values, torch.arange(size)
    )
    assert not torch.equal(first, second)
    assert not torch.equal(first, sequences.order(4, 0, size)[0])
    for start, stop in ((size - 5, size + 5), (7, 8), (size, 2 * size)):  # at an epoch's border, and within blocks
        assert torch.equal(sequences.order(3, start, stop)[0], which[start:stop])


def test_another_tokenizer_is_refused(sequences: Sequences) -> None:
    class Other(SentencePieceTokenizer):
        def __init__(self) -> None:
            self.hash = "0" * 64

    with pytest.raises(UserError, match="another tokenizer"):
        Sequences(sequences.shards, Other(), LENGTH)
