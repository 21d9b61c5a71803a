"""Fine-tunings that tests look at: run on the ranks of a pool, or by the real launcher."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from conftest import ROOT, Corpus
from small import sizes

from fast_electra.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from fast_electra.finetuning import sweep
from fast_electra.jobs import finetune
from fast_electra.model.files import build_model, save_model
from fast_electra.training.engines import Ranks

CONFIG = ROOT / "ds_configs/finetune.json"


def pretrained(folder: Path, corpus: Corpus, **changes: Any) -> Path:
    """Write a model folder that no training has seen, with larger weights than usual, so that it learns at once."""
    settings = sizes(**{"initial_std": 0.1, "initialization": "bert"} | changes)
    weights = build_model("rtd", settings, seed=3).state_dict()
    save_model(folder / "model", "rtd", settings, weights, tokenizer=SentencePieceTokenizer.load(corpus.tokenizer).hash)
    return folder


def hugging_face(folder: Path) -> Path:
    """Write a BERT of transformers that no training has seen, with a WordPiece tokenizer."""
    import transformers
    from finetuning.glue_files import CLUES, ENDS, SUBJECTS, VERBS

    words = sorted({word for text in (*CLUES, *SUBJECTS, *VERBS, *ENDS) for word in text.split()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    settings = transformers.BertConfig(vocab_size=len(vocabulary), initializer_range=0.2, **sizes)
    transformers.BertModel(settings).save_pretrained(folder)
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def overrides(task: str, data: Path, model: Path, corpus: Corpus, run: Path, **more: Any) -> list[str]:
    """Return what makes ds_configs/finetune.json small, in fp32."""
    values = {
        "fast_electra.task": task,
        "fast_electra.data": data,
        "fast_electra.pretrained": model,
        "fast_electra.tokenizer": corpus.tokenizer,
        "fast_electra.run": run,
        "fast_electra.sequence_length": 64,
        "fast_electra.epochs": 8,
        "fast_electra.dropout": 0.0,
        "optimizer.params.lr": 0.01,
        "train_batch_size": 8,
        "bf16.enabled": "false",
        **more,
    }
    return [f"{key}={value}" for key, value in values.items()]


def tune(given: Sequence[str], grid: "sweep.Grid | None", seeds: int, ranks: Ranks) -> None:
    """Do what `launch/finetune.py` does, on ranks that exist."""
    task, folder = finetune.open_search(CONFIG, given)
    work, configs = finetune.prepare(CONFIG, given, task, folder, grid, seeds)
    finetune.search(folder, work, configs, ranks)


def tune_all(many: Sequence[Sequence[str]], ranks: Ranks) -> None:
    """Fine-tune one after another."""
    for given in many:
        tune(given, None, 1, ranks)
