"""Which of two sentences does a model prefer, the one with the right verb or the wrong one? Nothing is fine-tuned.

    python experiments/minimal_pairs.py --pairs FILE MODEL ... [--every N] [--json FILE]

FILE has the columns subset, prefix, good and bad (tsv, or tsv.xz): the sentences are `prefix good` and `prefix bad`.
MODEL is a run of objective rtd, joint or mlm, or a directory with a head for replaced tokens. Guessing gives 0.5.

A discriminator prefers the sentence whose tokens have the higher probability of being original, all multiplied. A
masked language model prefers the one whose own tokens (those that the other lacks) are more probable where they are
masked, all at once.
"""

import argparse
import csv
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fast_electra import load_discriminator
from fast_electra.batch import Layout
from fast_electra.corpus.tokenizer import Tokenizer
from fast_electra.files import write_json
from fast_electra.model.files import describe
from fast_electra.model.heads import Discriminator, MaskedLanguageModel
from fast_electra.run_folder import model_in, open_trained
from fast_electra.streams import chunks, utf8

BATCH = 64  # sentences of a forward pass
Pair = tuple[str, str, str]  # subset, good and bad sentence
Sentence = tuple[list[int], slice]  # token ids with [CLS] and [SEP], and the tokens that the other sentence lacks
Score = Callable[[list[Sentence]], Tensor]


def main() -> None:
    """Score all pairs by each model, and print the share of right preferences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every N-th pair")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the shares of all subsets there")
    given = parser.parse_args()
    pairs = read_pairs(given.pairs)[:: given.every]
    found = {}
    for folder in given.models:
        shares = preferences(*open_scorer(folder), pairs)
        found[str(folder)] = shares
        error = math.sqrt(0.25 / len(pairs))
        subsets = ", ".join(f"{name} {share:.3f}" for name, share in shares.items() if name != "all")
        print(f"{folder}: {shares['all']:.4f} +- {error:.4f} of {len(pairs):,} pairs; {subsets}", flush=True)
    if given.json:
        write_json(given.json, found)


def read_pairs(file: Path) -> list[Pair]:
    """Return the pairs of a file."""
    text = b"".join(utf8(chunks(file), 0)).decode()
    rows = csv.DictReader(StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
    return [(row["subset"], f"{row['prefix']} {row['good']}", f"{row['prefix']} {row['bad']}") for row in rows]


def preferences(score: Score, tokenizer: Tokenizer, pairs: list[Pair]) -> dict[str, float]:
    """Return the share of pairs whose good sentence scores higher, of `all` and of each subset."""
    right: dict[str, list[bool]] = defaultdict(list)
    for first in range(0, len(pairs), BATCH):
        some = pairs[first : first + BATCH]
        both = [differences(tokenizer, good, bad) for _, good, bad in some]
        better = score([good for good, _ in both]) > score([bad for _, bad in both])
        for (subset, *_), is_right in zip(some, better.tolist(), strict=True):
            right["all"].append(is_right)
            right[subset].append(is_right)
    return {name: sum(found) / len(found) for name, found in right.items()}


def differences(tokenizer: Tokenizer, *texts: str) -> tuple[Sentence, Sentence]:
    """Return the tokens of two sentences, and where they differ."""
    good, bad = ([tokenizer.cls_id, *tokenizer.encode(text), tokenizer.sep_id] for text in texts)
    start = common(good, bad)
    end = min(common(good[::-1], bad[::-1]), len(good) - start, len(bad) - start)
    return (good, slice(start, len(good) - end)), (bad, slice(start, len(bad) - end))


def common(left: list[int], right: list[int]) -> int:
    """Return how many tokens are alike from the start."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def open_scorer(folder: Path) -> tuple[Score, Tokenizer]:
    """Open a model, and return what scores sentences, with its tokenizer."""
    described = describe(model_in(folder))
    if described is not None and described["kind"] == "mlm":
        model, _, tokenizer, *_ = open_trained(model_in(folder), "mlm", "train it again", None, "its run")
        return masked_scorer(model.eval(), tokenizer.mask_id), tokenizer
    detector = load_discriminator(folder)
    return original_scorer(detector.model), detector.tokenizer


def original_scorer(model: Discriminator) -> Score:
    """Return the log of the probability that all tokens of a sentence are original."""

    @torch.no_grad()
    def score(sentences: list[Sentence]) -> Tensor:
        tokens_T, layout = lay_out(sentences)
        log_probability_T = F.logsigmoid(-model(tokens_T, layout)) * layout.maskable_T
        return torch.zeros(len(sentences)).index_add(0, layout.sequence_T, log_probability_T)

    return score


def masked_scorer(model: MaskedLanguageModel, mask_id: int) -> Score:
    """Return the log of the probability of the tokens that the other sentence lacks, where they are masked."""

    @torch.no_grad()
    def score(sentences: list[Sentence]) -> Tensor:
        tokens_T, layout = lay_out(sentences)
        positions_M = torch.tensor(list(own_positions(sentences, layout)), dtype=torch.int64)
        original_M = tokens_T[positions_M]
        tokens_T[positions_M] = mask_id
        log_probability_MV = model(tokens_T, layout, positions_M).float().log_softmax(-1)
        found_M = log_probability_MV.gather(1, original_M[:, None])[:, 0]
        return torch.zeros(len(sentences)).index_add(0, layout.sequence_T[positions_M], found_M)

    return score


def lay_out(sentences: list[Sentence]) -> tuple[Tensor, Layout]:
    """Put the tokens of all sentences one after another."""
    lengths_B = torch.tensor([len(ids) for ids, _ in sentences])
    return torch.tensor([token for ids, _ in sentences for token in ids]), Layout.of(lengths_B)


def own_positions(sentences: list[Sentence], layout: Layout) -> Iterator[int]:
    """Yield the numbers, below T, of the tokens that the other sentence lacks."""
    for start, (_, own) in zip(layout.starts_B.tolist(), sentences, strict=True):
        yield from range(start + own.start, start + own.stop)


if __name__ == "__main__":
    main()
