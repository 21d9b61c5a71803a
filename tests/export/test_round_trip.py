"""An export gives the numbers of our model, in a process that has transformers and not this package.

`pytest tests/export/test_round_trip.py -rP` prints the largest differences.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import exporting
import pytest
import torch
from conftest import Corpus
from exporting import LABELS, WIDE
from safetensors.torch import load_file, save_file
from torch import Tensor

from fast_electra.batch import Layout
from fast_electra.cli import main
from fast_electra.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from fast_electra.model.heads import MaskedLanguageModel

LENGTHS = (300, 37, 151)
TEXTS = {
    "single": "The  king\nwas n't old , sir .",
    "pair": ["A king", " an old man "],
    "masked": "The king of [MASK] was old.",
}
TOLERANCE = 1e-5
# Kind, labels, changed sizes, and the stock class that has to load the encoder.
CASES: dict[str, tuple[str, list[str], dict[str, Any], str]] = {
    "encoder": ("rtd", [], {}, "MPNetModel"),
    "encoder-128-256": ("rtd", [], WIDE, "LayoutLMv3Model"),
    "encoder-projected": ("rtd", [], {"embedding_size": 16}, "MPNetModel"),
    "encoder-projected-128-256": ("rtd", [], WIDE | {"embedding_size": 16}, "LayoutLMv3Model"),
    "auxiliary": ("mlm", [], {}, "MPNetModel"),
    "auxiliary-projected": ("mlm", [], {"embedding_size": 16}, "MPNetModel"),
    "auxiliary-projected-unevenly": ("mlm", [], {"embedding_size": 24}, "LayoutLMv3Model"),
    "auxiliary-128-256": ("mlm", [], WIDE, "LayoutLMv3Model"),
    "auxiliary-projected-128-256": ("mlm", [], WIDE | {"embedding_size": 16}, "LayoutLMv3Model"),
    "classifier": ("classifier", LABELS, {}, "MPNetModel"),
    "classifier-128-256": ("classifier", LABELS[:2], WIDE, "LayoutLMv3Model"),
    "regression": ("classifier", [], {}, "MPNetModel"),
}


class Export(NamedTuple):
    """Our model, and what transformers made of its export."""

    model: Any
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


@pytest.fixture(scope="module")
def exports(tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Export]:
    folder, runs = tmp_path_factory.mktemp("exports"), tmp_path_factory.mktemp("runs")
    models = {}
    for name, (kind, labels, changes, _) in CASES.items():
        models[name] = exporting.shaken(kind, max(1, len(labels)), **changes)
        exporting.save_config(runs / name, tiny_corpus.tokenizer)
        exporting.save(runs / name / "model", kind, models[name], tiny_corpus.tokenizer, labels)
        assert main(["export", str(runs / name), str(folder / name)]) == 0
    tokens_BL, real_BL = batch()
    save_file({"tokens_BL": tokens_BL, "real_BL": real_BL.long()}, folder / "inputs.safetensors")
    (folder / "texts.json").write_text(json.dumps(TEXTS))
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(runs / "home"),
        "HF_MODULES_CACHE": str(runs / "m"),
    }
    command = [sys.executable, str(Path(__file__).with_name("load_exports.py")), str(folder)]
    done = subprocess.run(command, env=environment, cwd=runs, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {name: (load_file(folder / name / "found.safetensors"), folder / name / "found.json") for name in models}
    return {
        name: Export(models[name], tensors, json.loads(path.read_text())) for name, (tensors, path) in found.items()
    }


def batch() -> tuple[Tensor, Tensor]:
    """Tokens of three sequences with padding, [CLS] first, [UNK] and [MASK] among them; and which are real."""
    real_BL = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    tokens_BL = torch.randint(5, 1000, real_BL.shape, generator=torch.Generator().manual_seed(2))
    tokens_BL[:, 0], tokens_BL[:, 5], tokens_BL[:, 9] = 2, 1, 4
    return tokens_BL.where(real_BL, 0), real_BL


@torch.no_grad()
def expected(model: Any) -> tuple[Tensor, Tensor]:
    """Our hidden states [T, D], and our logits of each token or of each sequence."""
    tokens_BL, real_BL = batch()
    tokens_T, layout = tokens_BL[real_BL], Layout.of(torch.tensor(LENGTHS))
    every = (torch.arange(len(tokens_T)),) if isinstance(model, MaskedLanguageModel) else ()
    return model.encoder(tokens_T, layout), model(tokens_T, layout, *every)


@pytest.mark.parametrize("name", CASES)
def test_hidden_states_and_logits_are_ours(name: str, exports: dict[str, Export]) -> None:
    model, tensors, facts = exports[name]
    hidden_TD, logits = expected(model)
    real_BL = batch()[1]
    for how in ("together", "alone"):
        found = tensors[f"logits_{how}"]
        found = found if CASES[name][0] == "classifier" else found[real_BL]
        differences = {"hidden": tensors[f"hidden_{how}"][real_BL] - hidden_TD, "logits": found - logits}
        for what, difference in differences.items():
            largest, of = float(difference.abs().max()), hidden_TD if what == "hidden" else logits
            print(f"{name:28} {what} {how:8} {largest:.1e} (values up to {of.abs().max():.1f})")
            assert largest < TOLERANCE
    assert hidden_TD.std(0).mean() > 0.1 and logits.std(0).mean() > 0.05  # else equal numbers would say little
    pooler = ["pooler.dense.bias", "pooler.dense.weight"]
    stock = CASES[name][3]
    assert (facts["class"], facts["missing"]) == (stock, pooler if stock == "MPNetModel" else [])
    assert facts["own_report"] == [[], [], [], []] and facts["dtype"] == "torch.float32"


@pytest.mark.parametrize("name", CASES)
def test_texts_are_framed_as_in_training(name: str, exports: dict[str, Export], tiny_corpus: Corpus) -> None:
    facts, ours = exports[name].facts, SentencePieceTokenizer.load(tiny_corpus.tokenizer)
    first, second = (ours.encode(text) for text in TEXTS["pair"])
    assert facts["ids"] == [2, *ours.encode(str(TEXTS["single"])), 3] and facts["decoded"] == TEXTS["single"]
    assert facts["pair"] == [2, *first, 3, *second, 3] and facts["keys"] == ["attention_mask", "input_ids"]
    assert facts["cut"] == 300  # the run's sequence length


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][0] == "mlm"])
def test_fill_mask_answers_as_our_model(name: str, exports: dict[str, Export], tiny_corpus: Corpus) -> None:
    """A space before [MASK] is no token: in training, the space belongs to the word that is masked."""
    model, _, facts = exports[name]
    ours = SentencePieceTokenizer.load(tiny_corpus.tokenizer)
    before, after = (ours.encode(text) for text in ("The king of", " was old."))
    tokens_T, place = torch.tensor([2, *before, 4, *after, 3]), torch.tensor([len(before) + 1])
    with torch.no_grad():
        scores, ids = model(tokens_T, Layout.of(torch.tensor([len(tokens_T)])), place)[0].softmax(-1).topk(5)
    answer = torch.tensor(facts["answer"])
    assert answer[:, 0].long().tolist() == ids.tolist() and torch.allclose(answer[:, 1], scores, atol=TOLERANCE)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][0] == "classifier"])
def test_text_classification_answers_as_our_model(name: str, exports: dict[str, Export], tiny_corpus: Corpus) -> None:
    """A regression's answer is its output itself."""
    model, _, facts = exports[name]
    tokens_T = torch.tensor([2, *SentencePieceTokenizer.load(tiny_corpus.tokenizer).encode(str(TEXTS["single"])), 3])
    with torch.no_grad():
        logits_C = model(tokens_T, Layout.of(torch.tensor([len(tokens_T)])))[0]
    labels = CASES[name][1]
    wanted = logits_C.softmax(-1).tolist() if labels else logits_C.tolist()
    answers = {answer["label"]: answer["score"] for answer in facts["answer"]}
    assert answers == pytest.approx(dict(zip(labels or ["score"], wanted, strict=True)), abs=TOLERANCE)
