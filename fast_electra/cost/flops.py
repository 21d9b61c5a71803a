"""FLOPs of one sequence, as named terms: every matrix product that the code computes.

A product of [a, b] with [b, c] is 2abc FLOPs. Element-wise work (norms, GELU, softmax, noise, Adam) is left out, as is
usual: it takes time but hardly any FLOPs. `tests/cost/test_flops.py` compares every term with torch's own count.
"""

from typing import NamedTuple, Self

from torch import Tensor

from fast_electra.batch import masked_counts
from fast_electra.model.encoder import EncoderSettings

Terms = dict[str, float]

# Terms that are computed inside the layers: activation checkpointing computes them a second time.
LAYER_TERMS = ("query, key, value", "attention scores and values", "attention output", "feed-forward")
BACKWARD, RECOMPUTATION = "backward, 2 x forward", "recomputation of the layers"


class Lengths(NamedTuple):
    """The lengths of some sequences, as far as they decide what an average one costs."""

    mean: float
    mean_square: float
    masked: float  # masked positions of a sequence, on average
    longest: int

    @classmethod
    def of(cls, lengths_B: Tensor, mask_fraction: float) -> Self:
        """Return the figures of sequences of these lengths, [CLS] and [SEP] included."""
        masked_B, exact_B = masked_counts(lengths_B, mask_fraction).double(), lengths_B.double()
        return cls(float(exact_B.mean()), float(exact_B.square().mean()), float(masked_B.mean()), int(lengths_B.max()))


def encoder_forward(settings: EncoderSettings, lengths: Lengths, read: float) -> Terms:
    """Return the terms of one forward pass of the encoder over one sequence.

    The head reads the hidden states of `read` positions. After its attention, the last layer computes only these.
    """
    d, ffn, layers = settings.hidden_size, settings.ffn_size, settings.layers
    embedding_size = settings.embedding_size or d
    rows = (layers - 1) * lengths.mean + read
    projection = 2 * lengths.mean * embedding_size * d if embedding_size != d else 0
    return {
        "embedding, a look-up": 0,
        "embedding projection": projection,
        "query, key, value": layers * 2 * lengths.mean * d * 3 * d,
        "attention scores and values": layers * 2 * 2 * lengths.mean_square * d,
        "attention output": rows * 2 * d * d,
        "feed-forward": rows * 2 * 2 * d * ffn,
    }


def discriminator_forward(settings: EncoderSettings, lengths: Lengths) -> Terms:
    """Return the terms of the main model. Its head, of one hidden layer and one output, reads every position."""
    d = settings.hidden_size
    head = {"detection head": lengths.mean * (2 * d * d + 2 * d)}
    return encoder_forward(settings, lengths, lengths.mean) | head


def masked_lm_forward(settings: EncoderSettings, lengths: Lengths) -> Terms:
    """Return the terms of a masked language model, whose head reads the masked positions only."""
    d, vocabulary = settings.hidden_size, settings.vocabulary_size
    embedding_size = settings.embedding_size or d
    return encoder_forward(settings, lengths, lengths.masked) | {
        "head, transform": lengths.masked * 2 * d * embedding_size,
        "head, vocabulary": lengths.masked * 2 * embedding_size * vocabulary,
    }


def trained(forward: Terms, checkpointing: bool) -> Terms:
    """Return the terms of forward and backward pass. The backward pass has two products for each one of the forward.

    With activation checkpointing it also computes the layers' forward pass again. A GPU's fused attention computes its
    scores once more in any case; that is left out, as is usual.
    """
    again = sum(forward[name] for name in LAYER_TERMS) if checkpointing else 0
    return forward | {BACKWARD: 2 * sum(forward.values()), RECOMPUTATION: again}
