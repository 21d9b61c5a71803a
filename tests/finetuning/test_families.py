"""Families of models of transformers: those that give each row of a padded batch its own answer, and the others."""

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from fast_electra.batch import Layout
from fast_electra.finetuning.config import FineTuningSettings
from fast_electra.finetuning.pretrained import Pretrained, open_pretrained
from fast_electra.finetuning.tasks import TASKS
from fast_electra.settings import UserError

transformers = pytest.importorskip("transformers")
WORDS = ["<pad>", "<unk>", "<cls>", "<sep>", "<eos>", "war", "law", "money", "king", "a"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
BART = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
BART |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "eos_token_id": 4, "bos_token_id": 2}
GPT2 = {"n_embd": 32, "n_layer": 1, "n_head": 2, "bos_token_id": 2, "eos_token_id": 4}
SPECIAL = {"cls_token": "<cls>", "sep_token": "<sep>", "pad_token": "<pad>", "eos_token": "<eos>"}


def opened(folder: Path, family: str, template: str = "<cls> $A <sep>", **sizes: Any) -> Pretrained:
    """Write a model that no training has seen, with a tokenizer of words, and open it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    ids = {word: number for number, word in enumerate(WORDS)}
    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single=template, special_tokens=[*ids.items()])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", **SPECIAL)
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(vocab_size=len(WORDS), **{"pad_token_id": 0} | sizes)
    getattr(transformers, f"{family}Model")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    given = {"run": "x", "task": "sst2", "data": "x", "pretrained": str(folder), "sequence_length": 16, "dropout": 0.0}
    return open_pretrained(FineTuningSettings(**given), TASKS["sst2"])


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("Roberta", SIZES | {"max_position_embeddings": 17}),  # its first position is 1
        ("XLMRoberta", SIZES),
        ("Electra", SIZES | {"embedding_size": 16}),
        ("Albert", SIZES | {"embedding_size": 16}),
        ("MPNet", SIZES),
        ("DebertaV2", SIZES | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
        ("DistilBert", {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64, "sinusoidal_pos_embds": True}),
        ("ModernBert", SIZES | {"bos_token_id": 2, "eos_token_id": 4, "cls_token_id": 2, "sep_token_id": 3}),
    ],
)
def test_a_row_has_one_answer_in_every_batch_and_trains_all_weights(
    tmp_path: Path, family: str, sizes: dict[str, Any]
) -> None:
    found = opened(tmp_path, family, **sizes)
    model = found.model.eval()
    rows = [torch.tensor(ids) for ids, _ in found.encode([("war law money " * 4,), ("king",)], 16)]
    both_BC = model(torch.tensor([*chain(*rows)]), Layout.of(torch.tensor([len(ids) for ids in rows])))
    for ids, row_C in zip(rows, both_BC, strict=True):
        assert torch.allclose(model(ids, Layout.of(torch.tensor([len(ids)])))[0], row_C, atol=1e-5)
    torch.nn.functional.cross_entropy(both_BC, torch.tensor([0, 1])).backward()
    assert not [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]


@pytest.mark.parametrize(
    ("family", "sizes", "message"),
    [
        ("XLNet", {"d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 64}, "reads the padding"),
        ("GPT2", GPT2 | {"pad_token_id": None}, "cannot classify a padded batch .*padding token"),
        ("Bart", BART, "cannot classify a padded batch .*eos"),
        ("Bert", SIZES | {"template": "$A"}, r"adds no \[CLS\] or <s>"),
        ("Roberta", SIZES | {"max_position_embeddings": 16}, "has 16 positions, not enough for sequences of 16 tokens"),
    ],
)
def test_what_cannot_be_classified_in_padded_batches_is_one_line(
    tmp_path: Path, family: str, sizes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"^{tmp_path}: [^\n]*{message}[^\n]*$"):
        opened(tmp_path, family, **sizes)


def test_a_bart_whose_rows_end_as_it_expects_is_taken(tmp_path: Path) -> None:
    assert opened(tmp_path, "Bart", "<cls> $A <eos>", **BART).title == "bart of Hugging Face"
