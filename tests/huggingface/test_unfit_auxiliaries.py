"""Directories that cannot be an auxiliary: each is one line, at once, and nothing is written."""

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface.broken import BROKEN, cut_to, edited, text, weights, without
from ranks import Pool

from fast_electra import parts
from fast_electra.auxiliary import OpenedAuxiliary, load_auxiliary, open_auxiliary
from fast_electra.config import Config
from fast_electra.corpus.corpus import Corpus
from fast_electra.settings import UserError
from fast_electra.training.engines import Ranks

transformers = pytest.importorskip("transformers")
from huggingface.pairs import opened, tree, write_corpus  # noqa: E402 (it needs transformers)
from huggingface.zoo import masked_lm, saved  # noqa: E402

CPU = Ranks(0, 1, torch.device("cpu"))
REMEDY = "(: |; )(restore|name|save|merge|download|use) |. Make the corpus |use --set|needs its trained head"
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a corpus, its tokenizer, and a whole model."""
    folder = tmp_path_factory.mktemp("source")
    tokenizer = write_corpus(folder)
    masked_lm(folder / "bert", "bert")
    tokenizer.save_pretrained(folder / "bert")
    return folder


@pytest.fixture(scope="module")
def corpus(source: Path) -> Corpus:
    return parts.open_run_corpus(settings(source, source / "bert").run)


def settings(source: Path, folder: Path, **more: Any) -> Config:
    values = tree(source, ("none", "bert"), source / "run")
    values["fast_electra"]["auxiliary"] = {"huggingface": str(folder), "dtype": "fp32", **more}
    return opened(values, CPU)


def found(source: Path, corpus: Corpus, folder: Path) -> OpenedAuxiliary:
    return open_auxiliary(settings(source, folder).run, corpus)


def refused(source: Path, corpus: Corpus, folder: Path) -> str:
    before = sorted(folder.parent.rglob("*"))
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        found(source, corpus, folder)
    assert time.monotonic() - start < 10
    message = str(error.value)
    assert str(folder) in message and "\n" not in message and len(message) < 500
    assert re.search(REMEDY, message)
    assert sorted(folder.parent.rglob("*")) == before
    return message


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_directory_is_one_line(source: Path, corpus: Corpus, tmp_path: Path, kind: str) -> None:
    folder = shutil.copytree(source / "bert", tmp_path / "model")
    BROKEN[kind](folder)
    refused(source, corpus, folder)


def tokenizer(change: Callable[[dict[str, int]], object]) -> Change:
    """Change the vocabulary of a directory's tokenizer."""

    def do(folder: Path) -> None:
        pipeline = json.loads((folder / "tokenizer.json").read_text())
        change(pipeline["model"]["vocab"])
        (folder / "tokenizer.json").write_text(json.dumps(pipeline))

    return do


def tokenizer_config(**changes: Any) -> Change:
    def do(folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return do


def swapped(one: str, other: str) -> Change:
    return tokenizer(lambda ids: ids.update({one: ids[other], other: ids[one]}))


def another(family: str, auto: str = "AutoModelForMaskedLM", **more: Any) -> Change:
    """Put another model in the place of one, with the tokenizer that is there."""

    def do(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        saved(folder, family, auto, **more)

    return do


def sharded(folder: Path) -> None:
    """Leave one of several files of weights out."""
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    sorted(folder.glob("*.safetensors"))[1].unlink()


def headless(held: dict[str, torch.Tensor]) -> None:
    for name in [name for name in held if name.startswith("cls.")]:
        del held[name]


GPT2 = {"n_embd": 32, "n_layer": 1, "n_head": 2, "bos_token_id": 2, "eos_token_id": 3}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
BART = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
VIT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
ONE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
UNFIT: dict[str, tuple[Change, str]] = {
    "no head": (lambda at: weights(at, headless), "lacks .* needs its trained head"),
    "an encoder": (another("bert", "AutoModel"), "lacks .* needs its trained head"),
    "a discriminator": (another("electra", "AutoModelForPreTraining"), "lacks .* needs its trained head"),
    "a classifier": (another("bert", "AutoModelForSequenceClassification"), "lacks .* needs its trained head"),
    "a decoder": (
        another("gpt2", "AutoModelForCausalLM", **GPT2),
        "no masked language model .gpt2.: name the",
    ),
    "an encoder with a decoder": (
        another("t5", "AutoModel", **T5),
        "an encoder with a decoder .t5.: name that of an",
    ),
    "another with a decoder": (another("bart", **BART), "an encoder with a decoder .bart."),
    "images": (another("vit", "AutoModel", **VIT), "holds no masked language model .vit.: name the directory of one"),
    "mixes positions": (another("fnet", **ONE), "reads the padding .*; name another model"),
    "a shard is missing": (sharded, "model-00002-of-0.*: restore its files, or name another model"),
    "a file": (lambda at: (shutil.rmtree(at), at.write_text("")), "there is no folder .*: download the model"),
    "a run of ours": (text("config.json", '{"fast_electra": {}}'), "config.json has no model_type.: name the dir"),
    "few rows": (another("bert", vocab_size=199), "has 199 tokens, .* has 200: use the corpus with the model's own"),
    "few positions": (another("bert", max_position_embeddings=31), "has 31 positions, not enough for .* of 32 tokens"),
    "an infinite head": (
        lambda at: weights(at, lambda held: held["cls.predictions.bias"].fill_(torch.inf)),
        "not finite .cls.predictions.bias",
    ),
    "another padding": (
        lambda at: edited(at, pad_token_id=7),
        "pads with token 7, .* with 0: use the corpus with the",
    ),
    "other words": (
        swapped("w1", "w2"),
        "token 6 is '▁w1' in the corpus's and '▁w2' in the model's. Make",
    ),
    "other special ids": (
        swapped("[MASK]", "w2"),
        "mask_id is 4 in the corpus's and 7 in the model's. Make",
    ),
    "fewer words": (tokenizer(lambda ids: ids.pop("w194")), "has 200 tokens and the model's 199"),
    "no mask": (tokenizer_config(mask_token=None), "has no mask token"),
    "a tokenizer's code": (tokenizer_config(auto_map={"AutoTokenizer": ["code.T", None]}), "code of its own"),
    "half a tokenizer": (cut_to("tokenizer.json", 0.5), "cannot load the tokenizer"),
    "no pipeline": (without("tokenizer.json"), "cannot load the tokenizer .*restore its files"),
    "a tokenizer's config is no JSON": (text("tokenizer_config.json", "{"), "tokenizer_config.json cannot be read"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_a_model_that_does_not_fit_is_one_line(source: Path, corpus: Corpus, tmp_path: Path, kind: str) -> None:
    change, message = UNFIT[kind]
    folder = shutil.copytree(source / "bert", tmp_path / "model")
    change(folder)
    assert re.search(message, refused(source, corpus, folder))


def test_a_model_without_a_tokenizer_is_taken_with_a_note(source: Path, corpus: Corpus, tmp_path: Path) -> None:
    folder = shutil.copytree(source / "bert", tmp_path / "model")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    notes = found(source, corpus, folder).notes
    assert notes == [f"{folder} holds no tokenizer, so it is taken for granted that the corpus's is its own"]


def weak(source: Path, ranks: Ranks) -> None:
    """Load a model whose head is random."""
    for accept in (False, True):
        config = settings(source, source / "bert", accept_weak=accept)
        corpus = parts.open_run_corpus(config.run)
        if accept:
            load_auxiliary(config, corpus, parts.masking(config.run, corpus.tokenizer), ranks)
            continue
        with pytest.raises(UserError) as error:
            load_auxiliary(config, corpus, parts.masking(config.run, corpus.tokenizer), ranks)
        wanted = f"^{source / 'bert'}: loss .* it predicts no better than the frequency of tokens.*accept_weak=true$"
        assert re.search(wanted, str(error.value))


def test_a_head_that_was_never_trained_is_refused_unless_told_otherwise(source: Path, pools: dict[int, Pool]) -> None:
    pools[1].run(weak, source)
