"""`fast-electra pair MAIN AUXILIARY`: whether two directories of Hugging Face fit each other, and what to do if not."""

from pathlib import Path

from fast_electra.corpus.freeze import CONFIG
from fast_electra.corpus.same_tokenizer import ODD_TEXTS, difference
from fast_electra.corpus.tokenizer import Tokenizer, open_tokenizer
from fast_electra.huggingface.folder import check_safe
from fast_electra.huggingface.masked_lm import open_masked_lm
from fast_electra.huggingface.probe import KEY
from fast_electra.huggingface.settings import HuggingFaceSettings
from fast_electra.huggingface.sizes import sizes_of
from fast_electra.model.huggingface import open_main_model
from fast_electra.settings import UserError


def pair(main: Path, auxiliary: Path, length: int) -> tuple[list[str], bool]:
    """Look at both directories as a run would.

    Args:
        main: of the encoder that would be trained.
        auxiliary: of the masked language model that would draw.
        length: L, positions of the longest sequence.

    Returns:
        What was found, a line each, and whether they fit.
    """
    lines, problems = [], []
    tokenizers: list[Tokenizer | None] = []
    for name, folder in (("main", main), ("auxiliary", auxiliary)):
        check_safe(folder)
        sizes = sizes_of(folder)
        lines.append(
            f"{name:<10} {folder}: {sizes['layers']} x {sizes['hidden_size']}, {sizes['vocabulary_size']:,} tokens"
        )
        tokenizers.append(open_tokenizer(folder) if (folder / CONFIG).is_file() else None)
    its = tokenizers[0] or tokenizers[1]
    if its is None:
        raise UserError(f"neither {main} nor {auxiliary} holds a tokenizer ({CONFIG}): put the model's own there")
    if None in tokenizers:
        without, other = (main, auxiliary) if tokenizers[0] is None else (auxiliary, main)
        lines.append(f"tokenizer  {without} has none; that of {other} is taken for both")
    elif tokenizers[1] is not None and its.hash != tokenizers[1].hash:
        if found := difference(its, tokenizers[1], ODD_TEXTS, ("the main model's", "the auxiliary's")):
            problems.append(f"their tokenizers differ: {found}")
        else:
            lines.append("tokenizer  not the same file, but the same tokens")
    else:
        lines.append("tokenizer  the same")
    if not problems:
        problems = _try(main, auxiliary, its, length, lines)
    lines += [f"problem    {problem}" for problem in problems]
    if problems:
        lines.append("they do not fit: see docs/howto-continue.md for pairs that do")
        return lines, False
    named = f"--set fast_electra.model.huggingface={main} --set fast_electra.auxiliary.huggingface={auxiliary}"
    lines += [
        "they fit. Next:",
        f"fast-electra corpus --input TEXT --tokenizer {main if tokenizers[0] else auxiliary} --output SHARDS",
        f"deepspeed launch/pretrain.py --deepspeed_config ds_configs/continue.json {named} "
        f"--set fast_electra.corpus.shards=SHARDS --set fast_electra.corpus.tokenizer=SHARDS --set {KEY}={length}",
    ]
    return lines, True


def _try(main: Path, auxiliary: Path, tokenizer: Tokenizer, length: int, lines: list[str]) -> list[str]:
    """Open both models; add what a user should know of them to the lines, and return what is wrong."""
    problems, size = [], tokenizer.vocabulary_size
    try:
        settings = HuggingFaceSettings(huggingface=str(main))
        lines += [f"note       {note}" for note in open_main_model(settings, size, tokenizer.pad_id, length, 0)[1]]
    except UserError as error:
        problems.append(str(error))
    try:
        notes = open_masked_lm(auxiliary, size, tokenizer.pad_id, tokenizer.never_drawn, length)[1]
        lines += [f"note       {note}" for note in notes]
    except UserError as error:
        problems.append(str(error))
    return problems
