"""What can be fine-tuned, and folders that cannot: each is one line."""

import json
import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Corpus
from finetuning.tuned import hugging_face, overrides, pretrained
from huggingface.broken import BROKEN, edited, text, without

from fast_electra.batch import Layout
from fast_electra.export.export import export
from fast_electra.finetuning import config
from fast_electra.finetuning.config import FineTuningSettings
from fast_electra.finetuning.examples import Examples, shortened
from fast_electra.finetuning.pretrained import open_pretrained
from fast_electra.finetuning.tasks import TASKS
from fast_electra.settings import UserError

transformers = pytest.importorskip("transformers")
PAIR, SINGLE = TASKS["rte"], TASKS["sst2"]


def settings(model: Path, **more: Any) -> FineTuningSettings:
    values = {"run": "x", "task": "rte", "data": "x", "pretrained": str(model), "sequence_length": 32, "dropout": 0.0}
    return FineTuningSettings(**values | more)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hugging_face(tmp_path_factory.mktemp("bert"))


@torch.no_grad()
def test_a_padded_batch_is_what_transformers_makes_of_each_row(bert: Path) -> None:
    """Segments of a pair, padding and framing, beside transformers' own tokenizer and model on single rows."""
    opened = open_pretrained(settings(bert), PAIR)
    model, encode = opened.model.eval(), opened.encode
    rows = [("the old king spoke of war", "my sister asked about law"), ("a farmer", "money"), ("law", "war again")]
    ids = [row for row, _ in encode(rows, 32)]
    found_BC = model(torch.tensor([*chain(*ids)]), Layout.of(torch.tensor([len(row) for row in ids])))
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    for row, found_C in zip(rows, found_BC, strict=True):
        inputs = tokenizer(*row, return_tensors="pt")
        assert inputs["token_type_ids"].max() == 1
        assert torch.allclose(model.model(**inputs).logits[0], found_C, atol=1e-5)


def test_rows_that_are_too_long_lose_the_end_of_the_longer_text(
    bert: Path, tiny_corpus: Corpus, tmp_path: Path
) -> None:
    ours = pretrained(tmp_path / "ours", tiny_corpus)
    words = ["war", "law", "money", "king", "captain", "sister", "farmer", "friend", "president", "morning"]
    for model, more in ((bert, {}), (ours, {"tokenizer": str(tiny_corpus.tokenizer)})):
        opened = open_pretrained(settings(model, **more), PAIR)
        rows = [(" ".join(words[:2]), " ".join(words * 9)), (" ".join(words[:2]), " ".join(words[:2]))]
        examples = Examples(rows, opened.encode, 32)
        assert examples.cut == 1
        assert examples.lengths(torch.arange(2))[0] == 32
        whole, whole_length = opened.encode([rows[0]], 500)[0][0], len(opened.encode([(rows[0][0],)], 500)[0][0])
        cut = examples.tokens(torch.tensor([0])).tolist()
        assert cut[:whole_length] == whole[:whole_length]  # the first text, which is short, is kept
        assert cut[:31] == whole[:31] and cut[31] == whole[-1]


@pytest.mark.parametrize("room", range(12))
def test_shortened_keeps_as_much_as_there_is_room_for(room: int) -> None:
    for a in range(9):
        for b in range(9):
            first, second = shortened(list(range(a)), list(range(b)), room)
            assert len(first) + len(second) == min(room, a + b)
            assert first == list(range(len(first))) and second == list(range(len(second)))
            if a + b > room:  # only a text that is longer than the other one, or as long, was cut
                assert len(first) == a or len(first) >= len(second) - 1
                assert len(second) == b or len(second) >= len(first) - 1


def test_random_initialisation_has_the_sizes_and_other_weights(bert: Path, tiny_corpus: Corpus, tmp_path: Path) -> None:
    ours = pretrained(tmp_path / "ours", tiny_corpus)
    for model, more in ((bert, {}), (ours, {"tokenizer": str(tiny_corpus.tokenizer)})):
        first, again, random, other = (
            open_pretrained(settings(model, **more, **changes), SINGLE).model.state_dict()
            for changes in ({}, {}, {"initialization": "random", "seed": 1}, {"initialization": "random", "seed": 2})
        )
        assert first.keys() == random.keys()
        name = next(name for name in first if "embed" in name and name.endswith("weight"))
        assert all(torch.equal(first[key], again[key]) for key in first)
        assert not torch.equal(first[name], random[name]) and not torch.equal(random[name], other[name])


@torch.no_grad()
def test_an_export_of_ours_begins_with_the_states_that_ours_begins_with(tiny_corpus: Corpus, tmp_path: Path) -> None:
    """Its tokenizer frames pairs as ours does, and the encoder below the new head computes the same."""
    ours = pretrained(tmp_path / "ours", tiny_corpus)
    export(ours, tmp_path / "export", tokenizer=tiny_corpus.tokenizer)
    first = open_pretrained(settings(ours, tokenizer=str(tiny_corpus.tokenizer)), PAIR)
    second = open_pretrained(settings(tmp_path / "export"), PAIR)
    rows = [("The king was old.", "So was  the queen."), ("A word", "and a longer text than the other one " * 9)]
    assert first.encode(rows, 32) == second.encode(rows, 32)
    ids = torch.tensor(first.encode(rows, 32)[0][0])
    layout = Layout.of(torch.tensor([len(ids)]))
    states_TD = first.model.eval().encoder(ids, layout)
    inside = second.model.eval().model.base_model(input_ids=ids[None])
    assert torch.allclose(inside.last_hidden_state[0], states_TD, atol=1e-4)
    assert second.title == "mpnet of Hugging Face"


def test_the_schedule_follows_from_rows_epochs_and_batch(bert: Path) -> None:
    given = ["fast_electra.task=rte", "fast_electra.data=x", f"fast_electra.pretrained={bert}"]
    loaded = config.load("ds_configs/finetune.json", [*given, "fast_electra.epochs=2.5"], 100, config_machine())
    assert loaded.run.updates == 8 and loaded.run.evaluation.every == 4  # 250 rows, and 100, in batches of 32
    params = loaded.deepspeed["scheduler"]["params"]
    assert params["warmup_num_steps"] == 1 and params["total_num_steps"] == 9
    assert loaded.deepspeed["optimizer"]["type"] == "Adamax" and not loaded.fused_adam


def config_machine() -> Any:
    from fast_electra.deepspeed_config import Machine

    return Machine()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["fast_electra.task=null"], "fast_electra.task is missing: pass --task NAME"),
        (["fast_electra.updates=7"], "fast_electra.updates follows from the number of rows: set fast_electra.epochs"),
        (["fast_electra.evaluation.sequences=7"], "evaluation.sequences is not for tasks: all rows are evaluated"),
        (["fast_electra.recipe=tiny"], "is a config of pre-training: start it with launch/pretrain.py"),
        (["fast_electra.epoch=7"], "unknown key fast_electra.epoch; did you mean epochs?"),
        (["fast_electra.epochs=0"], "fast_electra.epochs must be a number > 0 and <= 1,000, not 0"),
        (["fast_electra.warmup=1"], "fast_electra.warmup must be a number >= 0 and < 1, not 1"),
        (["optimizer.params.torch_adam=true"], "optimizer.params.torch_adam belongs to Adam"),
        (
            ["fast_electra.pretrained=x", "fast_electra.run=x"],
            "fast_electra: run and pretrained are both x: name another folder for the run",
        ),
        (["fast_electra.apex=true"], "fast_electra.apex brings its own Adam, and optimizer.type asks for torch's"),
    ],
)
def test_a_wrong_config_is_one_line(bert: Path, given: list[str], message: str) -> None:
    right = ["fast_electra.task=rte", "fast_electra.data=x", f"fast_electra.pretrained={bert}"]
    with pytest.raises(UserError, match=f"^[^\n]*{message.replace('(', '.')}[^\n]*$"):
        config.load("ds_configs/finetune.json", [*right, *given], 100, config_machine())


TOKENIZER = ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json")
UNFIT: dict[str, Callable[[Path], object]] = BROKEN | {
    "no_classifier": lambda folder: edited(folder, model_type="clip"),
    "no_tokenizer": without(*TOKENIZER),
    "tokenizer_is_no_json": text("tokenizer.json", "{"),
    "larger_tokenizer": lambda folder: (
        without("tokenizer.json")(folder),
        (folder / "vocab.txt").write_text(
            "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(999))])
        ),
    ),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_a_broken_directory_is_one_line(bert: Path, tmp_path: Path, kind: str) -> None:
    folder = shutil.copytree(bert, tmp_path / "model")
    UNFIT[kind](folder)
    with pytest.raises(UserError) as error:
        open_pretrained(settings(folder), PAIR)
    assert str(folder) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: (run / "model/model.json").write_text("{"), "model.json cannot be read"),
        (lambda run: (run / "model/model.safetensors").unlink(), "cannot be read"),
        (lambda run: (run / "model/model.safetensors").write_bytes(b"1"), "is not what was written"),
        (lambda run: shutil.rmtree(run / "model"), "holds no model"),
    ],
)
def test_a_broken_run_is_one_line(
    tiny_corpus: Corpus, tmp_path: Path, change: Callable[[Path], Any], message: str
) -> None:
    run = pretrained(tmp_path / "run", tiny_corpus)
    change(run)
    with pytest.raises(UserError, match=f"^[^\n]*{message}[^\n]*$"):
        open_pretrained(settings(run, tokenizer=str(tiny_corpus.tokenizer)), PAIR)


def test_the_tokenizer_of_a_run_is_found_or_asked_for(tiny_corpus: Corpus, tmp_path: Path) -> None:
    run = pretrained(tmp_path / "run", tiny_corpus)
    with pytest.raises(UserError, match=r"is not in a run folder, .* --set fast_electra.tokenizer="):
        open_pretrained(settings(run), PAIR)
    section = {"run": str(run), "updates": 1, "corpus": {"tokenizer": str(tiny_corpus.tokenizer)}}
    (run / "config.json").write_text(json.dumps({"fast_electra": section}))
    assert open_pretrained(settings(run), PAIR).title == "our rtd model"


def test_overrides_are_those_of_the_config(tiny_corpus: Corpus, tmp_path: Path) -> None:
    """What the other tests set is what a user can set."""
    given = overrides("rte", tmp_path, tmp_path, tiny_corpus, tmp_path / "run")
    assert config.load("ds_configs/finetune.json", given, 10, config_machine()).run.epochs == 8
