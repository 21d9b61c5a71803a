"""A trained discriminator, to be asked about any text: which of its tokens look replaced?

from fast_electra import load_discriminator

model = load_discriminator("runs/quickstart/discriminator")
model.detect("The cat sat on the moon.")
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fast_electra import randomness
from fast_electra.batch import Layout, TokenBatch, ceil_div
from fast_electra.corpus.tokenizer import SPACE, Tokenizer
from fast_electra.corruption import CorruptionSettings, Masking, corrupt
from fast_electra.model.files import DESCRIPTION, load_model
from fast_electra.model.heads import Discriminator
from fast_electra.objectives.detection import auc
from fast_electra.replacement.auxiliary import Temperature
from fast_electra.run_folder import RunFolder, run_above
from fast_electra.settings import UserError

TOKENS = 16_384  # of one forward pass, at most
Span = tuple[int, int]  # start and end of a part of a text, in characters
BYTES = range(5, 261)  # ids of the tokens that are one byte each


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
    """A text after an auxiliary model replaced some of its tokens. Token i stands where token i of the original was."""

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
        ids = self._ids(text)
        return self._tokens(ids, self._logits([ids])[0])

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
        tokens = self._tokens(corrupted_ids, self._logits([corrupted_ids])[0])
        replaced = [now != before for now, before in zip(corrupted_ids, original, strict=True)]
        return Corrupted(spell(self.tokenizer, corrupted_ids)[0], tokens, replaced, spell(self.tokenizer, original)[1])

    def _tokens(self, ids: list[int], logits_T: Tensor) -> list[Token]:
        spans, probabilities = spell(self.tokenizer, ids)[1], logits_T.sigmoid().tolist()
        pieces = map(self.tokenizer.piece, ids)
        return [Token(piece, *span, p) for piece, span, p in zip(pieces, spans, probabilities, strict=True)]

    def _ids(self, text: str) -> list[int]:
        where = text.find("\0")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            where, what = error.start, "a lone surrogate, which is no character: was it read in another encoding?"
        else:
            what = "a NUL, which no corpus holds: is it text?"
        if where >= 0:
            raise UserError(f"character {where + 1:,} of the text is {what}")
        return self.tokenizer.encode(text)

    def _logits(self, documents: list[list[int]]) -> list[Tensor]:
        return self._each_token(self.model, documents, torch.zeros(0, device=self.device))

    @torch.no_grad()
    def _each_token(
        self, forward: Callable[[Tensor, Layout], Tensor], documents: list[list[int]], first: Tensor
    ) -> list[Tensor]:
        """Return what `forward` gives for the tokens of each document, after `first`, which has no rows."""
        found = [forward(batch.tokens_T, batch.layout)[batch.layout.maskable_T] for batch in self._batches(documents)]
        return list(torch.cat([first, *found]).split([len(ids) for ids in documents]))

    def _batches(self, documents: Iterable[list[int]], seed: int = 0) -> Iterator[TokenBatch]:
        """Yield the sequences of all documents in order. Those of each one are numbered from 0 in its noise."""
        cls, sep = self.tokenizer.cls_id, self.tokenizer.sep_id
        sequences = [
            (number, [cls, *ids[start:stop], sep])
            for ids in documents
            for number, (start, stop) in enumerate(cut(len(ids), self.sequence_length))
        ]
        size = max(1, TOKENS // self.sequence_length)
        for first in range(0, len(sequences), size):
            numbers, parts = zip(*sequences[first : first + size], strict=True)
            keys_B = randomness.key(seed, 0, torch.tensor(numbers))
            layout = Layout.of(torch.tensor([len(part) for part in parts]), keys_B)
            tokens_T = torch.tensor([token for part in parts for token in part])
            yield TokenBatch(tokens_T, layout, torch.tensor(numbers)).to(self.device)


def cut(tokens: int, length: int) -> list[Span]:
    """Return first token and end of each sequence of a document: see `fast_electra.corpus.sequences`."""
    pieces = ceil_div(tokens, length - 2)
    return [(tokens * piece // pieces, tokens * (piece + 1) // pieces) for piece in range(pieces)]


def spell(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[str, list[Span]]:
    """Return the text that tokens spell, and the span of each one in it.

    Bytes that form no character become U+FFFD, each by itself. A special token spells its name.
    """
    text, spans, at = list[str](), list[Span](), 0
    while (place := len(spans)) < len(ids):
        if ids[place] in BYTES:
            run = takewhile(BYTES.__contains__, ids[place : place + 4])
            same, spelt = _character(bytes(token - BYTES.start for token in run))
        else:
            same, spelt = 1, tokenizer.piece(ids[place]).replace(SPACE, " ")
        text.append(spelt)
        spans += [(at, at + len(spelt))] * same
        at += len(spelt)
    return "".join(text), spans


def _character(data: bytes) -> tuple[int, str]:
    """Return the number of bytes of the character that `data` begins with, and the character."""
    for size in range(1, len(data) + 1):
        with suppress(UnicodeDecodeError):
            return size, data[:size].decode()
    return 1, "\ufffd"


def load_discriminator(
    path: str | Path,
    tokenizer: str | Path | None = None,
    sequence_length: int | None = None,
    device: str | torch.device = "cpu",
) -> Detector:
    """Load a trained discriminator, in fp32 and eval mode.

    Args:
        path: a completed run of objective rtd or joint, or a folder with its model.
        tokenizer: folder of its tokenizer; by default the one that the run's config.json names.
        sequence_length: positions of a sequence, [CLS] and [SEP] included; by default those that the run trained on.
        device: where the model computes.

    Raises:
        UserError: there is no such model, it is damaged, or the tokenizer is another than it was trained with.
    """
    model, described, run = _load(path, "rtd", "a completed run of objective rtd or joint")
    corpus = None if run is None else run.record.corpus
    if run is not None and corpus is not None:
        tokenizer = tokenizer or run.tokenizer
        sequence_length = sequence_length or corpus.sequence_length
    if tokenizer is None or sequence_length is None:
        raise UserError(
            f"{path} is not in a run folder, whose config.json would say how it was trained: name the folder of its "
            "tokenizer and its sequence length (tokenizer and sequence_length, or --tokenizer and --sequence-length)"
        )
    if not 3 <= sequence_length <= TOKENS:
        raise UserError(f"the sequence length must be a whole number from 3 to {TOKENS:,}, not {sequence_length}")
    if not Path(tokenizer).is_dir():
        raise UserError(f"there is no folder {tokenizer} with the tokenizer of {path}: name it (--tokenizer FOLDER)")
    loaded = Tokenizer.load(tokenizer)
    _check_tokenizer(path, described, loaded, "name the one that it was trained with (--tokenizer FOLDER)")
    fraction = (CorruptionSettings() if run is None else run.record.corruption).mask_fraction
    return Detector(model.to(device), loaded, sequence_length, fraction)


def load_auxiliary(path: str | Path, detector: Detector) -> Temperature:
    """Load a frozen auxiliary model in fp32, with which `Detector.corrupt` draws replacements.

    Args:
        path: a completed run of objective mlm, or a folder with its model; of a joint run its folder `auxiliary`.
        detector: gives the tokenizer and the device.

    Raises:
        UserError: there is no such model, it is damaged, or its tokenizer is another than that of the detector.
    """
    model, described, _ = _load(path, "mlm", "a completed run of objective mlm")
    _check_tokenizer(path, described, detector.tokenizer, "name an auxiliary that was trained with the same one")
    return Temperature(model.to(detector.device).requires_grad_(False), detector.tokenizer.unk_id)


def _load(path: str | Path, kind: str, wanted: str) -> tuple[Any, dict[str, Any], RunFolder | None]:
    """Return a model of a run folder or a model folder, its description, and its run if there is one."""
    folder = Path(path).expanduser()
    if not (folder / DESCRIPTION).exists():
        folder = folder / "model"
    model, described = load_model(folder, kind, f"name {wanted}, or a folder with its model")
    # The run may have asked for a backend that the device here lacks.
    model.encoder.settings = model.encoder.settings.model_copy(update={"attention": "auto"})
    return model.eval(), described, run_above(folder)


def _check_tokenizer(path: str | Path, described: dict[str, Any], tokenizer: Tokenizer, remedy: str) -> None:
    if described["tokenizer"] != tokenizer.hash:
        raise UserError(
            f"{path} was trained with another tokenizer (sha256 {described['tokenizer'][:12]}) than the one given "
            f"({tokenizer.hash[:12]}); {remedy}"
        )
