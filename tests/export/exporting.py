"""Folders to export: runs and models as training writes them, with weights of which nothing is as it began."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fast_electra.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from fast_electra.files import write_sealed
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.files import build_model, save_model

LABELS = ["entailment", "neutral", "contradiction"]
WIDE = {"relative_buckets": 128, "relative_max_distance": 256}  # an encoder that MPNet does not take


def shaken(kind: str, outputs: int = 1, seed: int = 1, **changes: Any) -> nn.Module:
    """A model for the tiny corpus's tokenizer. Omegas, biases, norms and relative bias are far from their start."""
    sizes = {"vocabulary_size": 1000, "layers": 3, "hidden_size": 64, "ffn_size": 160, "heads": 4, "initial_std": 0.15}
    sizes |= changes
    model = build_model(kind, EncoderSettings(**sizes), seed, outputs).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "omega" in name:
                weight.mul_(1 + 0.3 * noise).abs_().clamp_(min=0.2)
            elif weight.dim() == 1 or "table" in name:
                weight.add_(0.2 * noise)
    return model


def save(folder: Path, kind: str, model: Any, tokenizer: Path, labels: list[str] | None = None) -> None:
    """Write a model folder as a run does."""
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    facts = {
        "tokenizer": SentencePieceTokenizer.load(tokenizer).hash,
        "evaluation": {"heldout_auc": 0.75, "by_class": [1, 2]},
    }
    save_model(folder, kind, model.encoder.settings, weights, **facts, **({"labels": labels} if labels else {}))


def save_config(run: Path, tokenizer: Path, length: int = 300, **section: Any) -> None:
    """Write a run's config.json with what an export reads of it, and more."""
    corpus_of_run = corpus(tokenizer, length)
    section = {"run": str(run), "objective": "rtd", "updates": 1500, "corpus": corpus_of_run, "joint": None} | section
    run.mkdir(exist_ok=True)
    write_sealed(run / "config.json", {"fast_electra": section, "deepspeed": {}, "corpus_hash": "0" * 32})


def corpus(tokenizer: Path, length: int = 300) -> dict[str, Any]:
    return {"shards": "no/shards", "tokenizer": str(tokenizer), "sequence_length": length}


def reseal(path: Path, **changes: Any) -> None:
    """Change keys of a sealed file as somebody would who knows how to seal it."""
    content = json.loads(path.read_text())
    del content["checksum"]
    write_sealed(path, content | changes)
