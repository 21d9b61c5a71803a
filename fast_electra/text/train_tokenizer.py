"""Text to a tokenizer: a SentencePiece BPE model and its card. The same text gives the same bytes."""

import heapq
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import xxhash

from fast_electra.corpus.pieces import SPACE
from fast_electra.corpus.sentencepiece_tokenizer import CARD, MODEL, SPECIAL_PIECES, SentencePieceTokenizer
from fast_electra.files import atomic_folder
from fast_electra.settings import UserError
from fast_electra.text.documents import Document, Losses, Rejected
from fast_electra.text.inputs import DEFAULT_MAX_DOCUMENT_BYTES, check_range, open_inputs
from fast_electra.text.readers import read_documents

_SENTENCE_CHARACTERS = 1024
_BORDER = re.compile(
    rf"[^{SPACE}]{SPACE}|\n"
)  # between words, never inside a piece: see corpus/sentencepiece_tokenizer.py


def train_tokenizer(
    inputs: Iterable[str | Path],
    output: str | Path,
    vocabulary: int,
    field: str = "text",
    max_document_bytes: int = DEFAULT_MAX_DOCUMENT_BYTES,
    document_per_line: bool = False,
    max_train_bytes: int = 2**28,
    character_coverage: float = 0.99999,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train a tokenizer, write its folder, complete or not at all, and return the contents of tokenizer.json.

    Args:
        inputs: files, folders, globs, or `sample`.
        output: the folder to write.
        vocabulary: exact number of ids, special tokens and bytes included.
        field: the key or column that holds the text.
        max_document_bytes: larger documents are left out.
        document_per_line: each line of a .txt file is a document; if False, blank lines separate them.
        max_train_bytes: if there is more text, train on a random sample of documents that is not larger than this.
        character_coverage: share of all characters that get a token of their own; the rest is spelt in bytes.
        overwrite: replace an existing tokenizer.

    Raises:
        UserError: the text cannot fill the vocabulary (the message says what it can), an argument is out of range, or
            the output exists.
    """
    if vocabulary <= (floor := len(SPECIAL_PIECES) + 256):
        raise UserError(f"--vocabulary {vocabulary} is too small: special tokens and bytes alone take {floor}")
    check_range("--vocabulary", vocabulary, floor + 1, 2**24)
    check_range("--max-train-bytes", max_train_bytes, 1)
    check_range("--character-coverage", character_coverage, 0.98, 1)  # SentencePiece's own range
    with atomic_folder(Path(output), marker=CARD, overwrite=overwrite) as folder:
        files = open_inputs(inputs, field, max_document_bytes, document_per_line)
        losses = Losses()
        documents = read_documents(files, field, max_document_bytes, document_per_line)
        sample, counts = _sample(documents, losses, max_train_bytes)
        if not sample:
            raise UserError(f"no documents to learn from in {len(files)} files: {losses.summary()}")
        model = _train(sample, vocabulary, character_coverage)
        tokenizer = SentencePieceTokenizer(model)
        assert tokenizer.vocabulary_size == vocabulary, (tokenizer.vocabulary_size, vocabulary)
        assert not any(_BORDER.search(tokenizer.piece(i)) for i in range(vocabulary))
        options = {"character_coverage": character_coverage, "max_train_bytes": max_train_bytes, "field": field}
        options |= {"document_per_line": document_per_line}
        card = {
            "format": 1,
            "vocabulary_size": vocabulary,
            "sha256": tokenizer.hash,
            "options": {"algorithm": "bpe"} | options,
            "inputs": [str(file) for file in files],
            "text": counts,
            "sentencepiece": sentencepiece.__version__,
        }
        (folder / MODEL).write_bytes(model)
        (folder / CARD).write_text(json.dumps(card, indent=2) + "\n")
    for line in losses.lines():
        print(f"left out: {line}", file=sys.stderr)
    return card


def _sample(items: Iterable[Document | Rejected], losses: Losses, limit: int) -> tuple[list[bytes], dict[str, int]]:
    """Return documents in UTF-8 and in order, and counts. If not all fit in `limit` bytes, the smallest hashes win."""
    kept: list[tuple[int, int, bytes]] = []  # a heap with the largest hash on top
    documents = size = held = 0
    for item in items:
        if isinstance(item, Rejected):
            losses.add(item)
            continue
        text = item.text.encode()
        documents += 1
        size += len(text)
        heapq.heappush(kept, (-xxhash.xxh3_64_intdigest(text), documents, text))
        held += len(text)
        while held > limit and len(kept) > 1:
            held -= len(heapq.heappop(kept)[2])
    counts = {"documents": documents, "bytes": size, "rejected": losses.documents.total()}
    counts |= {"sampled_documents": len(kept), "sampled_bytes": held}
    return [text for _, _, text in sorted(kept, key=lambda entry: entry[1])], counts


def _train(documents: Sequence[bytes], vocabulary: int, character_coverage: float) -> bytes:
    pad, unk, cls, sep, mask = SPECIAL_PIECES
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(documents),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocabulary,
            character_coverage=character_coverage,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            pad_piece=pad,
            unk_piece=unk,
            bos_piece=cls,
            eos_piece=sep,
            control_symbols=[mask],
            max_sentence_length=4 * _SENTENCE_CHARACTERS,  # bytes
            num_threads=4,  # fixed, because it is written into the model
            minloglevel=2,
        )
    except RuntimeError as error:
        if found := re.search(r"set it to a value <= (\d+)", str(error)):
            wrong = f"is more than this text can fill: at most {found[1]}; use that, or more text"
        elif found := re.search(r"required_chars.*?\d+ vs (\d+)", str(error)):
            wrong = f"is too small for the characters of this text: use more than {found[1]}"
        else:
            raise UserError(
                f"SentencePiece can learn nothing from this text; use other text ({str(error).strip()})"
            ) from None
        raise UserError(f"--vocabulary {vocabulary} {wrong}") from None
    return model.getvalue()


def _sentences(documents: Iterable[bytes]) -> Iterator[str]:
    """Yield lines. Long ones are cut before a space, because SentencePiece skips what is too long."""
    for document in documents:
        for line in document.decode().replace(SPACE, "\n").split("\n"):
            start = 0
            while start < len(line):
                stop = start + _SENTENCE_CHARACTERS
                space = line.rfind(" ", start + 1, stop) if stop < len(line) else -1
                stop = space if space > 0 else stop
                yield line[start:stop]
                start = stop
