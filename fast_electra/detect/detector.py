"""A trained discriminator, to be asked about any text: which of its tokens look replaced?

from fast_electra import load_discriminator

model = load_discriminator("runs/quickstart/discriminator")
model.detect("The cat sat on the moon.")
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fast_electra.batch import Layout, TokenBatch
from fast_electra.corpus.loader import read_batch
from fast_electra.corpus.pieces import Span, spell
from fast_electra.corpus.sequences import Sequences
from fast_electra.corpus.tokenizer import Tokenizer
from fast_electra.corruption import CorruptionSettings, Masking, corrupt
from fast_electra.detect import existing
from fast_electra.model.files import load_model
from fast_electra.model.heads import Discriminator
from fast_electra.objectives.detection import auc
from fast_electra.replacement.auxiliary import Temperature
from fast_electra.run_folder import model_in, open_trained
from fast_electra.settings import UserError

TOKENS = 16_384  # of one forward pass, at most
_REMEDY = "name a completed run of objective {}, or a folder with its model"


class Token(NamedTuple):
    """A token of a text, and what the discriminator believes of it."""

    piece: str  # as the tokenizer prints it: a space is ▁, a byte is like <0x0A>
    start: int  # text[start:end] is what the token spells. The bytes of one character share its span
    end: int
    probability: float  # that the token was replaced

    @property
    def span(self) -> Span:
        """Start and end."""
        return self.start, self.end


class Corrupted(NamedTuple):
    """A text after an auxiliary model replaced some of its tokens. Token i is where the original had its token i."""

    text: str
    tokens: list[Token]  # of the corrupted text
    replaced: list[bool]  # x_hat != x, for each token; a lucky guess counts as original
    spans: list[Span]  # of each token in the original text

    def summary(self, threshold: float = 0.5) -> dict[str, int | float | None]:
        """Count the tokens that were replaced, found, and falsely accused (original, but believed replaced).

        `auc` is the probability that a replaced token scores higher than an original one; None without both kinds.
        """
        scores_T = torch.tensor([token.probability for token in self.tokens], dtype=torch.float64)
        replaced_T = torch.tensor(self.replaced, dtype=torch.bool)
        levels, level_T = scores_T.unique(return_inverse=True)  # sorted
        counts = [level_T[kind_T].bincount(minlength=len(levels)).double() for kind_T in (~replaced_T, replaced_T)]
        return {
            "tokens": len(self.tokens),
            "replaced": int(replaced_T.sum()),
            "found": int((replaced_T & (scores_T >= threshold)).sum()),
            "accused": int((~replaced_T & (scores_T >= threshold)).sum()),
            "auc": auc(*counts),
        }


class Detector:
    """A discriminator with its tokenizer; `load_discriminator` makes one.

    Attributes:
        model: the `Discriminator`, in eval mode and fp32, on its device.
        encoder: its encoder, a torch module: `encoder(tokens_T, layout)` gives hidden states [T, D].
        tokenizer: text to token ids.
        sequence_length: positions of the sequences that the model was trained on, [CLS] and [SEP] included.
        mask_fraction: share of the positions that `corrupt` masks.
    """

    def __init__(
        self, model: Discriminator, tokenizer: Tokenizer, sequence_length: int, mask_fraction: float = 0.15
    ) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.sequence_length, self.mask_fraction = sequence_length, mask_fraction
        assert isinstance(model.encoder, nn.Module)
        self.encoder: nn.Module = model.encoder
        self.device = next(model.parameters()).device

    def detect(self, text: str) -> list[Token]:
        """Return all tokens of a text, in order, each with the probability that it was replaced.

        A text that is longer than the model's sequences is cut as the corpus was: into pieces of nearly equal length,
        which do not see each other. Nothing is left out.

        Raises:
            UserError: the text holds a NUL or a lone surrogate.
        """
        return self._tokens(self._ids(text))

    def spelt(self, text: str) -> str:
        """Return the text as its tokens spell it, into which their spans point.

        It is the text itself with our tokenizers. Others may lower its case, for one.
        """
        return spell(list(map(self.tokenizer.piece, self._ids(text))))[0]

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """Return the encoder's last hidden states of each text: float32 [tokens, D], on the model's device.

        Row i is token i of `detect`: the states of [CLS] and [SEP] are left out, and long texts are cut as there.

        Raises:
            UserError: a text holds a NUL or a lone surrogate.
        """
        if isinstance(texts, str):
            raise UserError("encode takes a list of texts, not one text: write encode([text])")
        first = torch.zeros(0, self.model.encoder.hidden_size, device=self.device)
        return self._each_token(self.model.encoder, [self._ids(text) for text in texts], first)

    @torch.no_grad()
    def corrupt(self, text: str, auxiliary: Temperature, temperature: float, seed: int = 0) -> Corrupted:
        """Corrupt a text as pre-training does (section 2, Eq. 1), and judge it.

        The noise is that of a run with this seed in its first epoch, where the text is the corpus's first document. In
        fp32 the same positions are masked and the same tokens drawn.

        Args:
            text: the text; see `detect`.
            auxiliary: see `load_auxiliary`. It must have the tokenizer of this discriminator.
            temperature: T of Eq. 1, positive; 1 draws from the auxiliary's own distribution.
            seed: seed of the noise.

        Raises:
            UserError: see `detect`; or temperature or seed is out of range.
        """
        if not 0.01 <= temperature < math.inf:
            raise UserError(f"the temperature must be a number of at least 0.01, not {temperature:g}")
        if not 0 <= seed < 2**62:
            raise UserError(f"the seed must be a whole number from 0 to 2^62 - 1, not {seed}")
        original = self._ids(text)
        masking, corrupted_ids = Masking(self.mask_fraction, self.tokenizer.mask_id), list[int]()
        for batch in self._batches([original], seed):
            corrupted = corrupt(batch, masking, auxiliary, temperature)
            corrupted_ids += corrupted.tokens_T[batch.layout.maskable_T].tolist()
        replaced = [new != old for new, old in zip(corrupted_ids, original, strict=True)]
        now, before = ([self.tokenizer.piece(token) for token in ids] for ids in (corrupted_ids, original))
        return Corrupted(spell(now)[0], self._tokens(corrupted_ids), replaced, spell(before)[1])

    def _tokens(self, ids: list[int]) -> list[Token]:
        probabilities = self._each_token(self.model, [ids], torch.zeros(0, device=self.device))[0].sigmoid().tolist()
        pieces = list(map(self.tokenizer.piece, ids))
        tokens = zip(pieces, spell(pieces)[1], probabilities, strict=True)
        return [Token(piece, *span, probability) for piece, span, probability in tokens]

    def _ids(self, text: str) -> list[int]:
        if bad := re.search("[\0\ud800-\udfff]", text):
            what = "a NUL: is it text?" if bad[0] == "\0" else "a lone surrogate: was it read in another encoding?"
            raise UserError(f"character {bad.start() + 1:,} of the text is {what}")
        return self.tokenizer.encode(text)

    @torch.no_grad()
    def _each_token(
        self, forward: Callable[[Tensor, Layout], Tensor], documents: list[list[int]], first: Tensor
    ) -> list[Tensor]:
        """Return what `forward` gives for the tokens of each document, after `first`, which has no rows."""
        found = [forward(batch.tokens_T, batch.layout)[batch.layout.maskable_T] for batch in self._batches(documents)]
        return list(torch.cat([first, *found]).split([len(ids) for ids in documents]))

    def _batches(self, documents: Sequence[list[int]], seed: int = 0) -> Iterator[TokenBatch]:
        """Yield the sequences of all documents in order, as those of a corpus in the first epoch of a run."""
        lengths = np.array([len(ids) for ids in documents])
        if not lengths.any():
            return
        shards: Any = SimpleNamespace(
            lengths=lengths,
            tokens=lambda document, start, stop: documents[document][start:stop],
            tokenizer_hash=self.tokenizer.hash,
        )
        sequences = Sequences(shards, self.tokenizer, self.sequence_length, minimum=1)
        for which in torch.arange(len(sequences)).split(max(1, TOKENS // self.sequence_length)):
            yield read_batch(sequences, seed, which, which, torch.zeros_like(which)).to(self.device)


def load_discriminator(
    path: str | Path,
    tokenizer: str | Path | None = None,
    sequence_length: int | None = None,
    device: str | torch.device = "cpu",
) -> Detector:
    """Load a trained discriminator, in fp32 and eval mode.

    Args:
        path: a completed run of objective rtd or joint, or a folder with its model. It may be one of Hugging Face with
            a head for replaced tokens.
        tokenizer: folder of its tokenizer; by default the one that the run's config.json names.
        sequence_length: positions of a sequence, [CLS] and [SEP] included; by default those that the run trained on.
        device: where the model computes.

    Raises:
        UserError: there is no such model, it is damaged, or the tokenizer is another than it was trained with.
    """
    if (folder := existing.existing_model(Path(path).expanduser())) is not None:
        its, its_tokenizer, its_length = existing.open_discriminator(folder, tokenizer, sequence_length)
        return Detector(its.to(device), its_tokenizer, its_length)
    folder, remedy = model_in(Path(path).expanduser()), _REMEDY.format("rtd or joint")
    model, _, loaded, run, trained_on = open_trained(folder, "rtd", remedy, tokenizer, "--tokenizer FOLDER")
    length = trained_on if sequence_length is None else sequence_length
    if length is None:
        raise UserError(f"nothing says on which sequence length {folder} was trained: name it with --sequence-length")
    if not 3 <= length <= TOKENS:
        raise UserError(f"the sequence length must be a whole number from 3 to {TOKENS:,}, not {length}")
    fraction = (run.record.corruption if run else CorruptionSettings()).mask_fraction
    return Detector(_anywhere(model).to(device), loaded, length, fraction)


def load_auxiliary(path: str | Path, detector: Detector) -> Temperature:
    """Load a frozen auxiliary model in fp32, with which `Detector.corrupt` draws replacements.

    Args:
        path: a completed run of objective mlm, or a folder with its model; of a joint run its folder `auxiliary`. Or
            the directory of a masked language model of Hugging Face.
        detector: gives the tokenizer and the device.

    Raises:
        UserError: there is no such model, it is damaged, or its tokenizer is another than that of the detector.
    """
    if (folder := existing.existing_model(Path(path).expanduser())) is not None:
        its = existing.open_auxiliary(folder, detector.tokenizer, detector.sequence_length)
        return Temperature(its.to(detector.device).requires_grad_(False), detector.tokenizer.unk_id)
    folder, remedy = model_in(Path(path).expanduser()), _REMEDY.format("mlm")
    model, described = load_model(folder, "mlm", remedy)
    if described["tokenizer"] != detector.tokenizer.hash:
        raise UserError(f"{folder} was trained with another tokenizer than the discriminator: name another auxiliary")
    return Temperature(_anywhere(model).to(detector.device).requires_grad_(False), detector.tokenizer.unk_id)


def _anywhere(model: Any) -> Any:
    """Let attention choose its backend, because the run may have asked for one that the device here lacks."""
    model.encoder.settings = model.encoder.settings.model_copy(update={"attention": "auto"})
    return model.eval()
