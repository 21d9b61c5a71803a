"""Encoders of several families of transformers behind the call of fine-tuning."""

from pathlib import Path
from typing import Any

import pytest
import torch
from finetuning.glue_files import CLUES, ENDS, SUBJECTS, VERBS

from fast_electra.batch import Layout
from fast_electra.finetuning.config import FineTuningSettings
from fast_electra.finetuning.pretrained import open_pretrained
from fast_electra.finetuning.tasks import TASKS

transformers = pytest.importorskip("transformers")
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "roberta": {},
    "xlm-roberta": {},
    "electra": {"embedding_size": 16},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "albert": {"embedding_size": 16},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "mpnet": {},
    "modernbert": {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "local_attention": 8},
}
ROWS = [("the captain spoke of war",), ("law",), ("my sister asked about money in the morning",)]


def encoder(folder: Path, family: str) -> Path:
    """Write a small encoder that no training has seen, with a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = sorted({word for text in (*CLUES, *SUBJECTS, *VERBS, *ENDS) for word in text.split()})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    backend = Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(pieces)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"vocab_size": len(pieces), "pad_token_id": 0, "max_position_embeddings": 64}
    config = transformers.AutoConfig.for_model(family, **SIZES | sizes | FAMILIES[family])
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoder_is_trained_and_padding_moves_nothing(tmp_path: Path, family: str) -> None:
    folder = encoder(tmp_path, family)
    values = {"run": "x", "task": "rte", "data": "x", "pretrained": str(folder), "sequence_length": 32, "dropout": 0.0}
    opened = open_pretrained(FineTuningSettings(**values), TASKS["sst2"])
    model = opened.model.eval()
    ids = [torch.tensor(row) for row, _ in opened.encode(ROWS, 32)]
    together_BC = model(torch.cat(ids), Layout.of(torch.tensor([len(row) for row in ids])))
    for row, outputs_C in zip(ids, together_BC, strict=True):
        assert torch.allclose(model(row, Layout.of(torch.tensor([len(row)])))[0], outputs_C, atol=1e-5)
    model.train()
    torch.nn.functional.cross_entropy(
        model(ids[0], Layout.of(torch.tensor([len(ids[0])]))), torch.tensor([1])
    ).backward()
    without = {name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None}
    assert not {name for name in without if "pooler" not in name}, without
