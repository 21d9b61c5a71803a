"""Held-out measures of a main model that do not depend on the replacements that it was trained on.

The encoder is frozen and every model is judged on identical inputs. Nothing here is random: the same model gets the
same figures. Shape letters are those of fast_electra/batch.py. In addition, P and Q count classified positions (to fit
a probe and to judge it), and C counts the classes of a probe.

    swap_auc        AUC of a linear probe on the hidden states, for tokens that changed places with a neighbour
    cloze_nats      cross-entropy of a linear probe that guesses a hidden token from the hidden state at its position
    cloze_accuracy  how often the first guess of the same probe is right
    judge_auc       AUC of the model's own head, for the replacements of an auxiliary that no model was trained with

Only the last one needs a detection head. Untrained models and masked language models can be scored by the others.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fast_electra import randomness
from fast_electra.batch import Draws, Layout, TokenBatch
from fast_electra.corpus.sequences import Sequences
from fast_electra.corruption import Masking, mask, replace
from fast_electra.model.encoder import Encoder
from fast_electra.model.heads import Discriminator, MaskedLanguageModel
from fast_electra.objectives import detection
from fast_electra.training.loop import evaluation_batch
from fast_electra_kernels import sample

SEED = 20_240_515  # chooses the probes' texts and noise; no training uses it
FIT, TEST = 1024, 768  # numbers of sequences to fit a probe on, and to judge it on
SWAPPED, HIDDEN = 0.10, 0.15  # fractions of the positions
CLASSES = 100  # the cloze probe's classes are the most frequent tokens
BATCH = 64
DECAY, STEPS = 1e-4, 40  # a probe's L2 penalty and steps of L-BFGS

SETTINGS = {"seed": SEED, "fit": FIT, "test": TEST, "swapped": SWAPPED, "hidden": HIDDEN, "classes": CLASSES}

Figures = dict[str, float]


@dataclass(frozen=True)
class Labelled:
    """Sequences with tokens to classify, whose numbers below T are int64, and the label of each of them."""

    tokens_T: Tensor
    layout: Layout
    positions_P: Tensor
    labels_P: Tensor


@dataclass(frozen=True)
class Inputs:
    """What every model is judged on. In a pair, the first is training text and fits the probe; the second judges it."""

    swapped: tuple[Labelled, Labelled]
    hidden: tuple[Labelled, Labelled]
    judged: Labelled
    known: Figures  # figures that need no model


def prepare(train: Sequences, heldout: Sequences, judge: MaskedLanguageModel) -> Inputs:
    """Return the inputs, which are the same for all models, and the figures that need no model.

    Args:
        train: training text.
        heldout: held-out text.
        judge: the auxiliary whose replacements, drawn at temperature 1, the models' own heads have to find.
    """
    fit = evaluation_batch(train, "reference", torch.arange(FIT), SEED)
    test = evaluation_batch(heldout, "heldout", torch.arange(TEST), SEED)
    vocabulary_size = judge.encoder.settings.vocabulary_size
    counts_V = torch.bincount(fit.tokens_T, minlength=vocabulary_size)
    counts_V[list(train.tokenizer.special_ids)] = 0
    frequent_C = counts_V.argsort(descending=True, stable=True)[:CLASSES]
    unknown = train.tokenizer.unk_id
    class_V = torch.full((vocabulary_size,), -1)
    class_V[frequent_C] = torch.arange(len(frequent_C))
    hidden = hide(fit, class_V, unknown), hide(test, class_V, unknown)
    judged = replaced(test, judge, train.tokenizer.mask_id)
    prior_C = (counts_V[frequent_C] + 1.0).log().log_softmax(0)
    known = {
        "cloze_nats": float(-prior_C[hidden[1].labels_P].mean()),
        "cloze_accuracy": float((hidden[1].labels_P == 0).double().mean()),
        "judge_auc": token_identity(replaced(fit, judge, train.tokenizer.mask_id), judged, vocabulary_size),
        "judge_replaced": float(judged.labels_P.double().mean()),
        "swapped_positions": float((swapped_test := swap(test)).labels_P.sum()),
        "hidden_positions": float(len(hidden[1].labels_P)),
    }
    return Inputs((swap(fit), swapped_test), hidden, judged, known)


def swap(batch: TokenBatch) -> Labelled:
    """Swap neighbouring tokens at the fraction SWAPPED of the positions, and label both of them 1.

    Pairs do not overlap and hold two different tokens, so each labelled position really changed. In one sequence, all
    pairs start at even positions or all start at odd ones. Noise chooses which, so the position itself tells nothing.
    """
    tokens_T, layout = batch.tokens_T, batch.layout
    inner_T, sequence_T, position_T = layout.maskable_T, layout.sequence_T, layout.position_T
    parity_B = randomness.key(1, layout.keys_B) & 1
    pair_T = inner_T & inner_T.roll(-1) & (tokens_T != tokens_T.roll(-1))  # a token and its right neighbour
    pair_T &= position_T % 2 == parity_B[sequence_T]
    noise_T = randomness.key(2, layout.keys_B[sequence_T], position_T)
    order_T = layout.order(noise_T, pair_T)
    count_B = ((layout.lengths_B - 2) * SWAPPED / 2 + 0.5).floor()
    left_T = torch.zeros_like(pair_T).index_copy(0, order_T, position_T < count_B[sequence_T]) & pair_T
    moved_T = left_T | left_T.roll(1)
    source_T = torch.arange(len(tokens_T)) + left_T.long() - (moved_T & ~left_T).long()
    positions_P = inner_T.nonzero().squeeze(1)
    return Labelled(tokens_T[source_T], layout, positions_P, moved_T[positions_P].long())


def hide(batch: TokenBatch, class_V: Tensor, unknown: int) -> Labelled:
    """Put [UNK] at the fraction HIDDEN of the positions. The probe guesses the tokens that have a class (not -1).

    [MASK] would be unfair: a joint run trains its embedding, and a run with a frozen auxiliary never does. No text
    holds [UNK], so every main model meets it here for the first time.

    Args:
        batch: sequences.
        class_V: class of each token of the vocabulary, or -1.
        unknown: id of [UNK].
    """
    hidden = mask(batch, Masking(HIDDEN, unknown))
    class_M = class_V[hidden.original_M]
    asked_M = class_M >= 0
    return Labelled(hidden.tokens_T, batch.layout, hidden.positions_M[asked_M], class_M[asked_M])


@torch.no_grad()
def replaced(batch: TokenBatch, judge: MaskedLanguageModel, mask_id: int) -> Labelled:
    """Replace 15% of the tokens by the judge's draws at temperature 1. The label is x_hat != x."""
    judge.eval()
    masked = mask(batch, Masking(0.15, mask_id))
    hidden_ME = judge.hidden(masked.tokens_T, batch.layout, masked.positions_M)
    ids_M = sample(hidden_ME, judge.encoder.embedding.weight, judge.bias, scale=1.0, keys_M=masked.keys_M)
    corrupted = replace(masked, Draws(ids_M))
    everywhere_P = torch.arange(len(corrupted.tokens_T))
    return Labelled(corrupted.tokens_T, batch.layout, everywhere_P, corrupted.replaced_T.long())


def token_identity(fit: Labelled, test: Labelled, vocabulary_size: int) -> float:
    """Return the best AUC without context: each token scores its rate of being a replacement, estimated on `fit`."""
    counts = []
    for data in (test, fit):
        index_P = data.tokens_T[data.positions_P] + vocabulary_size * data.labels_P
        counts.append(torch.bincount(index_P, minlength=2 * vocabulary_size).double().view(2, -1))
    figure = detection.auc_token_identity(*counts)
    assert figure is not None
    return figure


def score(model: Discriminator | MaskedLanguageModel, inputs: Inputs) -> Figures:
    """Return all figures of a model; `judge_auc` only if it has a detection head."""
    model.eval()
    states = [features(model.encoder, data) for data in inputs.swapped]
    log_p = probe(states[0], inputs.swapped[0].labels_P, states[1], 2)
    figures = {"swap_auc": auc(log_p[:, 1] - log_p[:, 0], inputs.swapped[1].labels_P)}
    states = [features(model.encoder, data) for data in inputs.hidden]
    labels_P = inputs.hidden[1].labels_P
    log_p = probe(states[0], inputs.hidden[0].labels_P, states[1], CLASSES)
    figures["cloze_nats"] = float(F.nll_loss(log_p, labels_P))
    figures["cloze_accuracy"] = float((log_p.argmax(1) == labels_P).double().mean())
    if isinstance(model, Discriminator):
        figures["judge_auc"] = auc(logits(model, inputs.judged), inputs.judged.labels_P)
    return figures


@torch.no_grad()
def features(encoder: Encoder, data: Labelled) -> Tensor:
    """Return the last layer's hidden states at the positions: float32 [P, D]."""
    return _by_batch(encoder, data)


@torch.no_grad()
def logits(model: Discriminator, data: Labelled) -> Tensor:
    """Return the detection head's logits at the positions: float32 [P]."""
    return _by_batch(model, data)


def _by_batch(model: Any, data: Labelled) -> Tensor:
    lengths = data.layout.lengths_B.split(BATCH)
    tokens = data.tokens_T.split([int(part_B.sum()) for part_B in lengths])
    parts = [model(part_T, Layout.of(part_B)) for part_T, part_B in zip(tokens, lengths, strict=True)]
    return torch.cat(parts)[data.positions_P]


def probe(fit_PD: Tensor, labels_P: Tensor, test_QD: Tensor, classes: int) -> Tensor:
    """Fit a softmax regression to standardised features by L-BFGS, from zero.

    Args:
        fit_PD: features to fit it to.
        labels_P: their classes.
        test_QD: features to classify.
        classes: C.

    Returns:
        Log-probabilities of the classes for `test_QD`: float32 [Q, C].
    """
    mean_D, std_D = fit_PD.mean(0), fit_PD.std(0) + 1e-6
    fit_PD, test_QD = (fit_PD - mean_D) / std_D, (test_QD - mean_D) / std_D
    weight = torch.zeros(classes, fit_PD.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(fit_PD, weight, bias), labels_P) + DECAY * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return F.linear(test_QD, weight, bias).log_softmax(1)


def auc(scores_P: Tensor, labels_P: Tensor) -> float:
    """Return the exact area under the ROC curve: how often a positive scores above a negative. Ties count half."""
    levels, level_P = scores_P.unique(return_inverse=True)
    counts = torch.bincount(level_P + len(levels) * labels_P, minlength=2 * len(levels)).double().view(2, -1)
    figure = detection.auc(counts[0], counts[1])
    assert figure is not None
    return figure
