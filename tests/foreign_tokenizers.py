"""Hugging Face tokenizers as users have them: trained by `tokenizers`, and saved by transformers."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

BRACKETS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
ANGLES = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
KINDS = {  # class of transformers, which builds its own pipeline from the vocabulary; and the names of special tokens
    "bert": ("BertTokenizer", BRACKETS),
    "roberta": ("RobertaTokenizer", ANGLES),
    "deberta": ("DebertaV2Tokenizer", BRACKETS),
    "xlmr": ("XLMRobertaTokenizer", ANGLES),
    "generic": ("PreTrainedTokenizerFast", BRACKETS),  # Unigram too
    "bytes": ("PreTrainedTokenizerFast", BRACKETS),  # BPE that falls back to bytes
}


def train(kind: str, folder: Path, texts: Iterable[str], size: int = 600) -> Path:
    """Train a tokenizer of one of KINDS, save it by transformers, and return its folder."""
    name, special = KINDS[kind]
    save(fast(kind, texts, size), folder, special, name)
    return folder


def fast(kind: str, texts: Iterable[str], size: int = 600) -> Any:
    """Return a trained `tokenizers.Tokenizer` of one of KINDS, which frames its texts."""
    special = KINDS[kind][1]
    options: dict[str, Any] = {"vocab_size": size, "special_tokens": list(special.values()), "show_progress": False}
    if kind == "bert":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
        trainer: Any = trainers.WordPieceTrainer(**options)
    elif kind == "roberta":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **options)
    elif kind == "bytes":
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence(steps)
        options["special_tokens"] += [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(**options)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token=special["unk"], **options)
    tokenizer.train_from_iterator(texts, trainer)
    if kind == "bytes":  # the bytes are no special tokens, only entries
        state = json.loads(tokenizer.to_str())
        state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special.values()]
        tokenizer = Tokenizer.from_str(json.dumps(state))
    frame(tokenizer, [special["cls"]], [special["sep"]])
    return tokenizer


def frame(tokenizer: Any, before: list[str], after: list[str]) -> None:
    """Let a tokenizer put these tokens before and behind each text."""
    single = [*before, "$A", *after]
    tokens = [(token, tokenizer.token_to_id(token)) for token in {*before, *after}]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=tokens)


def save(tokenizer: Any, folder: Path, special: dict[str, str], name: str = "PreTrainedTokenizerFast") -> None:
    """Save a tokenizer as transformers does, with the name of its class."""
    import transformers

    named = {f"{what}_token": token for what, token in special.items()}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    edit(folder / "tokenizer_config.json", tokenizer_class=name)


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: entry for key, entry in value.items() if entry is not None}))
