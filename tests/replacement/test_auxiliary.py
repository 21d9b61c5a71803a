"""Each augmentation does to the auxiliary what E.2 says, decided by keys alone; its pieces are its draws."""

import pytest
import small
import torch
from conftest import Corpus
from small import MASK, UNK
from torch import Tensor

from fast_electra.batch import MaskedBatch
from fast_electra.corpus.frequency import log_frequency, token_counts
from fast_electra.corpus.sequences import Sequences
from fast_electra.corruption import mask
from fast_electra.model.dropout import KeyedDropout
from fast_electra.model.heads import MaskedLanguageModel
from fast_electra.replacement.auxiliary import AUGMENTATIONS, Auxiliary, DropToken
from fast_electra.replacement.distribution import LinearDistribution, axis_position
from fast_electra_kernels import winners

LINEAR = ["temperature", "term_frequency_interpolation"]


@pytest.fixture(scope="module")
def sequences(tiny_corpus: Corpus) -> Sequences:
    return small.sequences(tiny_corpus)


@pytest.fixture(scope="module")
def model() -> MaskedLanguageModel:
    return small.masked_lm(layers=2)


@pytest.fixture(scope="module")
def log_frequency_V(sequences: Sequences) -> Tensor:
    return log_frequency(token_counts(sequences.shards, sequences.tokenizer.vocabulary_size))


@pytest.fixture(scope="module")
def auxiliaries(model: MaskedLanguageModel, log_frequency_V: Tensor) -> dict[str, Auxiliary]:
    return {name: kind(model, UNK, log_frequency_V) for name, kind in AUGMENTATIONS.items()}


def masked_batch(sequences: Sequences, n: int = 0, **share: int) -> MaskedBatch:
    (batch,) = small.batches(sequences, n, **share)
    return mask(batch, small.masking())


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_any_division_of_a_batch_draws_alike(
    name: str, auxiliaries: dict[str, Auxiliary], sequences: Sequences
) -> None:
    """One rank and several, micro-batches of other widths: the same replacements."""
    value = AUGMENTATIONS[name].range.initial
    whole = auxiliaries[name].sample(masked_batch(sequences), value).tokens_M
    parts = [masked_batch(sequences, micro_batch=6, ranks=4, rank=rank) for rank in range(4)]
    assert torch.equal(torch.cat([auxiliaries[name].sample(part, value).tokens_M for part in parts]), whole)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_at_its_floor_an_augmentation_is_the_plain_auxiliary(
    name: str, auxiliaries: dict[str, Auxiliary], sequences: Sequences
) -> None:
    masked = masked_batch(sequences)
    plain = auxiliaries["temperature"].sample(masked, 1.0)
    draws = auxiliaries[name].sample(masked, AUGMENTATIONS[name].range.floor)
    assert torch.equal(draws.tokens_M, plain.tokens_M)
    easier = auxiliaries[name].sample(masked, AUGMENTATIONS[name].range.initial)
    assert not torch.equal(easier.tokens_M, plain.tokens_M)


@pytest.mark.parametrize("name", LINEAR)
@torch.no_grad()
def test_output_augmentations_follow_their_definitions(
    name: str, auxiliaries: dict[str, Auxiliary], model: MaskedLanguageModel, sequences: Sequences
) -> None:
    """Entropy and probability of the original, beside a dense float64 softmax of the paper's formula."""
    masked, value = masked_batch(sequences), 1.6 if name == "temperature" else 0.4
    log_p = model(masked.tokens_T, masked.layout, masked.positions_M).double().log_softmax(1)
    if name == "temperature":
        p_MV = (log_p / value).softmax(1)
    else:
        p_TF = auxiliaries[name].log_frequency_V.double().exp()
        p_MV = p_TF**value * log_p.exp() ** (1 - value)
        p_MV = p_MV / p_MV.sum(1, keepdim=True)
    draws = auxiliaries[name].sample(masked, value)
    original_M1 = masked.original_M[:, None]
    assert torch.allclose(draws.original_probability_M.double(), p_MV.gather(1, original_M1)[:, 0], rtol=1e-4)
    assert torch.allclose(draws.entropy_M.double(), -torch.xlogy(p_MV, p_MV).sum(1), rtol=1e-4)


def test_interpolation_never_draws_what_the_corpus_lacks(
    auxiliaries: dict[str, Auxiliary], log_frequency_V: Tensor, sequences: Sequences
) -> None:
    absent = log_frequency_V < -1e20
    assert absent.any() and not absent.all()
    draws = [
        auxiliaries["term_frequency_interpolation"].sample(masked_batch(sequences, n), 1e-3).tokens_M for n in range(9)
    ]
    assert not absent[torch.cat(draws)].any()
    plain = [auxiliaries["temperature"].sample(masked_batch(sequences, n), 1.0).tokens_M for n in range(9)]
    assert absent[torch.cat(plain)].any()  # the model itself does


@pytest.mark.parametrize("name", LINEAR)
def test_pieces_are_the_draws_at_every_value(
    name: str, auxiliaries: dict[str, Auxiliary], sequences: Sequences
) -> None:
    auxiliary, masked = auxiliaries[name], masked_batch(sequences)
    assert isinstance(auxiliary, LinearDistribution)
    _, floor, _, initial = AUGMENTATIONS[name].range
    ends = sorted((axis_position(auxiliary.parameter, initial), axis_position(auxiliary.parameter, floor)))
    pieces = auxiliary.pieces(masked, *ends)
    changed = 0
    for step in range(40):
        value = initial + (floor - initial) * step / 39
        drawn_M = auxiliary.sample(masked, value).tokens_M
        assert torch.equal(winners(pieces, axis_position(auxiliary.parameter, value)), drawn_M)
        changed += int((drawn_M != auxiliary.sample(masked, initial).tokens_M).sum())
    assert changed > 0


def test_drop_token_drops_an_exact_fraction_of_what_is_neither_special_nor_masked(
    auxiliaries: dict[str, Auxiliary], sequences: Sequences
) -> None:
    drop_token = auxiliaries["drop_token"]
    assert isinstance(drop_token, DropToken)
    masked = masked_batch(sequences)
    tokens, lengths = masked.tokens_T.clone(), masked.layout.lengths_B
    ends = lengths.cumsum(0)
    tokens[ends - 1] = tokens[ends - lengths] = MASK  # [CLS] and [SEP] are no more eligible than what is masked
    eligible_T = tokens != MASK
    before = torch.ones_like(eligible_T)

    def sums(chosen_T: Tensor) -> Tensor:
        return torch.stack([part.sum() for part in chosen_T.split(lengths.tolist())])

    for fraction in (1.0, 0.5, 0.2, 0.0):
        tokens_T = drop_token.input(masked, fraction)
        dropped_T = tokens_T != masked.tokens_T
        assert (tokens_T[dropped_T] == UNK).all()
        assert not (dropped_T & ~eligible_T).any()
        unknown_T = (masked.tokens_T == UNK) & eligible_T  # dropping them changes nothing
        expected_B = (sums(eligible_T) * fraction + 0.5).floor()
        assert ((sums(dropped_T) - expected_B).abs() <= sums(unknown_T)).all()
        assert not (dropped_T & ~before).any()  # a falling fraction only restores tokens
        before = dropped_T


@pytest.mark.parametrize("rates", [{"hidden_rate": 0.3}, {"attention_rate": 0.3}])
@torch.no_grad()
def test_dropped_alike_whether_or_not_the_last_layer_is_pruned(
    rates: dict[str, float], model: MaskedLanguageModel, sequences: Sequences
) -> None:
    masked = masked_batch(sequences)
    drop = KeyedDropout(**rates)
    whole = model.encoder(masked.tokens_T, masked.layout, drop=drop)[masked.positions_M]
    pruned = model.encoder(masked.tokens_T, masked.layout, masked.positions_M, drop)
    plain = model.encoder(masked.tokens_T, masked.layout, masked.positions_M)
    assert torch.allclose(whole, pruned, atol=1e-5) and not torch.allclose(plain, pruned, atol=0.1)
