"""Small things that many tests need: models, batches and configs of the tiny corpus that are ready in milliseconds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from conftest import Corpus

from fast_electra import config
from fast_electra.batch import TokenBatch
from fast_electra.config import Config
from fast_electra.corpus.loader import Loader, Share
from fast_electra.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from fast_electra.corpus.sequences import Sequences
from fast_electra.corpus.shards import Shards
from fast_electra.corruption import Masking
from fast_electra.deepspeed_config import Machine
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.heads import MaskedLanguageModel
from fast_electra.settings import UserError
from fast_electra.training.engines import Ranks

Record = Callable[[str, object], None]  # pytest's record_property
CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)
UNK, MASK = 1, 4  # ids of every tokenizer of ours


def sizes(**changes: Any) -> EncoderSettings:
    """One layer of 32 features for the tiny corpus's 1,000 tokens, with changes."""
    return EncoderSettings(
        **{"vocabulary_size": 1000, "layers": 1, "hidden_size": 32, "ffn_size": 64, "heads": 2} | changes
    )


def masked_lm(seed: int = 7, **changes: Any) -> MaskedLanguageModel:
    """An untrained model in eval mode, with weights large enough that its distributions are far from uniform."""
    return MaskedLanguageModel(sizes(**{"initial_std": 0.4} | changes), seed).eval()


def sequences(corpus: Corpus, length: int = 40) -> Sequences:
    """The training sequences of a corpus."""
    return Sequences(Shards.open(corpus.shards), SentencePieceTokenizer.load(corpus.tokenizer), length)


def batches(sequences: Sequences, n: int = 0, seed: int = 5, **share: int) -> list[TokenBatch]:
    """A rank's part of global batch n: by default one micro-batch of 24 sequences, all of it."""
    return Loader(sequences, Share(**{"micro_batch": 24, "accumulation": 1} | share), seed, 0.15).batch(n)


def masking() -> Masking:
    """The paper's 15%."""
    return Masking(0.15, MASK)


def tree(corpus: Corpus, batch: int = 8, **section: Any) -> dict[str, Any]:
    """What a config file holds: objective rtd on a corpus cut to 40 tokens; `section` replaces keys of fast_electra."""
    defaults = {
        "objective": "rtd",
        "recipe": "tiny",
        "run": "unused",
        "updates": 10,
        "auxiliary": {"run": "unused", "dtype": "fp32"},
        "model": {"vocabulary_size": corpus.vocabulary_size},
        "corpus": {"shards": str(corpus.shards), "tokenizer": str(corpus.tokenizer), "sequence_length": 40},
    }
    adam = {"type": "Adam", "params": {"lr": 1e-3}}
    return {"train_batch_size": batch, "optimizer": adam, "fast_electra": defaults | section}


def load(path: Path, tree: dict[str, Any] | None = None, **keys: Any) -> Config:
    """Write a config file (None: it exists) and load it for one CPU; `keys` override, with __ for the dot."""
    if tree is not None:
        path.write_text(json.dumps(tree))
    overrides = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in keys.items()]
    return config.load(
        path, [key if key.startswith("train") else f"fast_electra.{key}" for key in overrides], Machine()
    )


def every_flipped_bit(path: Path, read: Callable[[], Any]) -> int:
    """With any bit of the file turned, `read` refuses it with one line that names it, or reads what was written.

    Returns:
        The number of bits.
    """
    written, whole = read(), path.read_bytes()
    for bit in range(len(whole) * 8):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            found, message = read(), str(path)
        except UserError as error:
            found, message = written, str(error)
        assert found == written and str(path) in message and "\n" not in message, f"bit {bit}: {message}"
    path.write_bytes(whole)
    return len(whole) * 8
