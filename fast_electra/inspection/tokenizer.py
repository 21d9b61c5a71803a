"""The facts about a tokenizer of any kind."""

import json
from pathlib import Path
from typing import Any

from fast_electra.corpus.frozen_tokenizer import FrozenTokenizer
from fast_electra.corpus.sentencepiece_tokenizer import CARD, MODEL
from fast_electra.corpus.tokenizer import open_tokenizer


def tokenizer_facts(folder: Path) -> dict[str, Any]:
    """Describe the tokenizer in a folder: see `open_tokenizer`.

    Raises:
        UserError: it is damaged, or of no use here.
    """
    tokenizer = open_tokenizer(folder)
    facts: dict[str, Any] = {"entries": tokenizer.vocabulary_size}
    if isinstance(tokenizer, FrozenTokenizer):
        ids = {name: getattr(tokenizer, f"{name}_id") for name in ("pad", "unk", "cls", "sep", "mask")}
        facts["special"] = {name: tokenizer.piece(token) for name, token in ids.items() if token is not None}
        facts |= {"hash": tokenizer.hash, "never drawn": len(tokenizer.never_drawn)}
        return facts | {"made from": tokenizer.frozen.source, "by": tokenizer.frozen.versions}
    card = json.loads((folder / CARD).read_text())
    facts |= {"bytes": (folder / MODEL).stat().st_size}
    return facts | {"hash": tokenizer.hash, "options": card.get("options"), "inputs": card.get("inputs")}
