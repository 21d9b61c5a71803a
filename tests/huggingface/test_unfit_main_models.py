"""Directories that cannot be a main model: each is one line, at once."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface.broken import BROKEN, edited, weights

from fast_electra.settings import UserError

transformers = pytest.importorskip("transformers")
from huggingface.zoo import V, config_of, opened, write  # noqa: E402 (it needs transformers)

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
GPT2 = {"n_embd": 32, "n_layer": 1, "n_head": 2, "bos_token_id": 2, "eos_token_id": 3}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
ELECTRA_HEAD = "discriminator_predictions.dense.bias"


@pytest.fixture(scope="module")
def electra(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("electra"), "electra", "AutoModelForPreTraining")


def refused(place: Path, **more: Any) -> str:
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        opened(place, **more)
    assert time.monotonic() - start < 10
    message = str(error.value)
    assert str(place) in message and "\n" not in message and len(message) < 500
    return message


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_directory_is_one_line(electra: Path, tmp_path: Path, kind: str) -> None:
    folder = shutil.copytree(electra, tmp_path / "model")
    BROKEN[kind](folder)
    refused(folder)


UNFIT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "other padding": (
        lambda at: edited(at, pad_token_id=1),
        "pads with token 1, .* with 0: use the corpus with the mod",
    ),
    "half a head": (lambda at: weights(at, lambda held: held.pop(ELECTRA_HEAD)), f"lacks .* head .{ELECTRA_HEAD}"),
    "no number": (
        lambda at: weights(at, lambda held: held[ELECTRA_HEAD].fill_(torch.inf)),
        f"not finite .{ELECTRA_HEAD}",
    ),
    "wide head": (
        lambda at: weights(at, lambda held: held.update({ELECTRA_HEAD: torch.zeros(33)})),
        f"other sizes than its config says .{ELECTRA_HEAD}",
    ),
    "a decoder": (lambda at: edited(at, is_decoder=True), "a decoder, whose states know no later token"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_a_model_that_does_not_fit_is_one_line(electra: Path, tmp_path: Path, kind: str) -> None:
    change, message = UNFIT[kind]
    folder = shutil.copytree(electra, tmp_path / "model")
    change(folder)
    with pytest.raises(UserError, match=f"^[^\n]*{message}[^\n]*$"):
        opened(folder)


@pytest.mark.parametrize(
    ("family", "sizes", "message"),
    [
        ("gpt2", GPT2, "is a decoder"),
        ("t5", T5, "is an encoder with a decoder .t5."),
        ("fnet", SIZES, "reads the padding after a sequence"),
        ("convbert", SIZES | {"embedding_size": 16}, "reads the padding after a sequence"),
        ("vit", SIZES | {"image_size": 8, "patch_size": 4}, "is no model of text .vit."),
        ("roberta", SIZES | {"max_position_embeddings": 40}, "has 40 positions, not enough for sequences of 40 tokens"),
    ],
)
def test_a_family_that_cannot_be_a_main_model_is_one_line(
    tmp_path: Path, family: str, sizes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"^{tmp_path}[^\n]* {message}[^\n]*$"):
        opened(write(tmp_path, family, **sizes))


def test_the_longest_sequence_and_the_largest_vocabulary_are_taken(tmp_path: Path) -> None:
    folder = write(tmp_path / "roberta", "roberta", max_position_embeddings=41)  # its first position is 1
    assert opened(folder, length=40).encoder.vocabulary_size == V
    assert "use --set fast_electra.corpus.sequence_length=N" in refused(folder, length=41)
    assert f"has {V} tokens, and the tokenizer of the corpus has {V + 1}" in refused(folder, size=V + 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ("{}", "cannot be loaded by transformers"),
        (b"\xff\xfe", "cannot be read"),
        ({"model_type": "gremlin", "auto_map": {"AutoConfig": "code.Config"}}, "cannot be loaded by transformers"),
        ({"vocab_size": 20}, f"has 20 tokens, .* has {V}: set vocab_size in its config"),
        ({"max_position_embeddings": 8}, "has 8 positions, not enough"),
        ({"hidden_size": 33}, "cannot be loaded by transformers"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "holds a quantized model"),
    ],
)
def test_a_config_that_cannot_be_trained_is_one_line(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "small.json"
    if isinstance(content, dict):
        content = json.dumps(config_of("bert").to_dict() | content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"^[^\n]*{path}[^\n]*{message}[^\n]*$"):
        opened(path)
