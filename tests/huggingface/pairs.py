"""RTD of one model of transformers against another, on a corpus of their tokenizer: what the ranks of a test run."""

import json
import shutil
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface.zoo import FAMILIES, KINDS, masked_lm, saved

from fast_electra import config, parts
from fast_electra.corruption import corrupt
from fast_electra.jobs import preprocess, pretrain
from fast_electra.settings import UserError
from fast_electra.text.build import build_shards
from fast_electra.training.engines import Ranks, add_over_ranks
from fast_electra.training.loop import Run
from fast_electra.training.machine import this_machine
from fast_electra_kernels import gumbel

UPDATES, LENGTH, ENTRIES = 3, 32, 200
AUXILIARIES = (
    *("bert", "roberta", "electra", "distilbert", "albert", "mpnet", "deberta-v2", "modernbert", "nomic_bert", "esm"),
)
PAIRS = list(zip(AUXILIARIES, cycle(KINDS)))


def words() -> Any:
    """Return a tokenizer of ENTRIES words, special tokens first."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    known = special + [f"w{number}" for number in range(ENTRIES - len(special))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(known)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    frame = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **names)


def write_corpus(folder: Path) -> Any:
    """Write a tokenizer and shards; return it as transformers has it."""
    fast = words()
    fast.save_pretrained(folder / "tokenizer")
    numbers = torch.randint(0, ENTRIES - 5, (60, 50), generator=torch.Generator().manual_seed(0)) ** 2 // ENTRIES
    text = "\n\n".join(" ".join(f"w{number}" for number in row) for row in numbers.tolist())
    (folder / "text.txt").write_text(text)
    build_shards([folder / "text.txt"], folder / "tokenizer", folder / "shards", heldout=0.2)
    return fast


def write_all(folder: Path) -> None:
    """Write a corpus, and models with its tokenizer."""
    fast = write_corpus(folder)
    for family in AUXILIARIES:
        masked_lm(folder / f"auxiliary_{family}", family)
        fast.save_pretrained(folder / f"auxiliary_{family}")
    for family in KINDS:
        saved(folder / f"main_{family}", family, seed=1)
        fast.save_pretrained(folder / f"main_{family}")


def tree(folder: Path, pair: tuple[str, str], run: Path) -> dict[str, Any]:
    """Return a config of two models."""
    auxiliary, main = pair
    return {
        "train_batch_size": 8,
        "optimizer": {"type": "Adam", "params": {"lr": 1e-3, "eps": 1e-3, "torch_adam": True}},
        "zero_optimization": {"stage": 2},
        "fast_electra": {
            "objective": "rtd",
            "recipe": "continue",
            "run": str(run),
            "updates": UPDATES,
            "model": {"huggingface": str(folder / f"main_{main}"), "dropout": 0.0},
            "auxiliary": {"huggingface": str(folder / f"auxiliary_{auxiliary}"), "accept_weak": True, "dtype": "fp32"},
            "corpus": {
                "shards": str(folder / "shards"),
                "tokenizer": str(folder / "shards"),
                "sequence_length": LENGTH,
            },
            "evaluation": {"sequences": 8},
        },
    }


def opened(values: dict[str, Any], ranks: Ranks, *overrides: str) -> config.Config:
    """Return the config of a tree."""
    path = Path(values["fast_electra"]["run"]).with_suffix(f".{ranks.rank}.json")
    path.write_text(json.dumps(values))
    return config.load(path, overrides, this_machine())


def updates(run: Run) -> list[dict[str, Any]]:
    """Return the figures of all updates, summed over ranks."""
    rows = []
    for n in range(1, UPDATES + 1):
        row, sums = run.update(n)
        rows.append(row | run.objective.summary(add_over_ranks([sums])[0]))
    return rows


def train(folder: Path, pair: tuple[str, str], output: Path, ranks: Ranks) -> None:
    """Train a pair online in fp32 and in bf16, and in fp32 from a store; write all figures, and compare the draws."""
    values = tree(folder, pair, output / "-".join(pair))
    online = parts.build(opened(values, ranks), ranks)
    model = online.objective.distribution.model.model  # type: ignore[attr-defined]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _check_draws(folder, pair, online)
    found = {"online": updates(online)}
    same = all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    store = output / f"store-{'-'.join(pair)}"
    preprocess.write(opened(values, ranks), store, ranks, part=8)
    named = f"fast_electra.replacement.store={store}"
    found["offline"] = updates(parts.build(opened(values, ranks, named), ranks))
    half = ("bf16.enabled=true", "fast_electra.auxiliary.dtype=bf16")
    found["bf16"] = updates(parts.build(opened(values, ranks, *half), ranks))
    if ranks.rank == 0:
        (output / f"{'-'.join(pair)}.json").write_text(json.dumps({"rows": found, "auxiliary_is_the_same": same}))


def resume(folder: Path, pair: tuple[str, str], output: Path, ranks: Ranks) -> None:
    """Train a pair to its end, and again from a checkpoint in between."""
    values = tree(folder, pair, output / "whole")
    values["fast_electra"]["checkpoint"] = {"every": 1, "keep": 9}
    values["fast_electra"]["model"]["dropout"] = None  # that of the model's own config
    pretrain.train(opened(values, ranks), ranks)
    cut = output / "resumed"
    shutil.copytree(output / "whole", cut)
    shutil.rmtree(cut / "model")
    for later in range(2, UPDATES + 1):
        shutil.rmtree(cut / f"checkpoints/update-{later:08d}")
    (cut / "checkpoints/latest").write_text("update-00000001\n")
    pretrain.train(opened(values, ranks, f"fast_electra.run={cut}"), ranks)
    other = f"fast_electra.model.huggingface={folder / 'main_electra'}"
    try:
        pretrain.train(opened(values, ranks, f"fast_electra.run={cut}", other), ranks)
    except UserError as error:
        (output / "refused.txt").write_text(str(error))


@torch.no_grad()
def _check_draws(folder: Path, pair: tuple[str, str], run: Run) -> None:
    """Compare the replacements of update 2 with those from transformers' own full logits and the same noise."""
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(folder / f"auxiliary_{pair[0]}", dtype=torch.float32)
    temperature = run.strength(2)
    assert temperature is not None and temperature > 1.0
    objective: Any = run.objective
    for batch in run.loader.batch(1):
        corrupted = corrupt(batch, objective.masking, objective.distribution, temperature)
        masked, logits = corrupted.masked, []
        for tokens in masked.tokens_T.split(batch.layout.lengths_B.tolist()):
            logits.append(theirs.eval()(input_ids=tokens[None]).logits[0])
        scores_MV = torch.cat(logits)[masked.positions_M, :ENTRIES] / temperature
        scores_MV += gumbel(masked.keys_M, torch.arange(ENTRIES, dtype=torch.int32))
        scores_MV[:, :5] = -torch.inf
        assert torch.equal(scores_MV.argmax(1), corrupted.draws.tokens_M)


assert set(AUXILIARIES) | set(KINDS) <= set(FAMILIES)
