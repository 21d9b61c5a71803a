"""The offline store: the tokens of training online, whoever wrote and reads it; what does not fit is refused."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conftest
import pytest
import torch
from torch import Tensor

from fast_electra import config
from fast_electra.batch import CorruptedBatch, TokenBatch
from fast_electra.config import Config
from fast_electra.corpus.corpus import Corpus
from fast_electra.corpus.frequency import log_frequency, token_counts
from fast_electra.corpus.loader import Loader, Share, read_batch
from fast_electra.corpus.sequences import Sequences
from fast_electra.corruption import corrupt
from fast_electra.deepspeed_config import Machine
from fast_electra.jobs import preprocess
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.heads import MaskedLanguageModel
from fast_electra.parts import masking, open_run_corpus
from fast_electra.replacement.auxiliary import AUGMENTATIONS
from fast_electra.replacement.auxiliary_free import auxiliary_free
from fast_electra.replacement.distribution import Distribution
from fast_electra.settings import UserError
from fast_electra.store.format import MANIFEST
from fast_electra.store.match import open_for_run
from fast_electra.store.reader import Stored
from fast_electra.training.engines import Ranks
from fast_electra.training.loop import evaluation_batch

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, CPU)
BATCH, UPDATES = 24, 10
Make = Callable[..., Config]


@pytest.fixture(scope="module")
def make(tiny_corpus: conftest.Corpus, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A resolved config; keyword arguments are keys, with __ for the dot."""
    folder = tmp_path_factory.mktemp("configs")
    tree = {
        "train_batch_size": BATCH,
        "optimizer": {"type": "Adam", "params": {"lr": 1e-3}},
        "fast_electra": {
            "objective": "rtd",
            "recipe": "tiny",
            "run": "unused",
            "updates": UPDATES,
            "auxiliary": {"run": str(folder / "away")},
            "model": {"vocabulary_size": tiny_corpus.vocabulary_size},
            "corpus": {
                "shards": str(tiny_corpus.shards),
                "tokenizer": str(tiny_corpus.tokenizer),
                "sequence_length": 40,
            },
            "evaluation": {"sequences": 12},
        },
    }
    (folder / "config.json").write_text(json.dumps(tree))

    def make(**keys: Any) -> Config:
        overrides = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in keys.items()]
        overrides = [key if key.startswith("train") else f"fast_electra.{key}" for key in overrides]
        return config.load(folder / "config.json", overrides, Machine(1))

    return make


@pytest.fixture(scope="module")
def corpus(make: Make) -> Corpus:
    """Few enough sequences for several epochs: those of the longest document."""
    whole = open_run_corpus(make().run)
    few = Sequences(whole.train.shards, whole.tokenizer, 40, minimum=int(whole.train.shards.lengths.max()))
    assert len(few) < UPDATES * BATCH / 2
    return dataclasses.replace(whole, train=few)


@pytest.fixture(scope="module")
def model(corpus: Corpus) -> MaskedLanguageModel:
    """Untrained, with weights large enough that its distributions are far from uniform."""
    size = corpus.tokenizer.vocabulary_size
    sizes = EncoderSettings(
        vocabulary_size=size, layers=1, hidden_size=32, ffn_size=64, heads=2, initial_std=0.4, relative_start="local"
    )
    return MaskedLanguageModel(sizes, seed=7).eval()


def distribution(settings: Config, corpus: Corpus, model: MaskedLanguageModel) -> Distribution:
    replacement, size = settings.run.replacement, corpus.tokenizer.vocabulary_size
    frequency_V = log_frequency(token_counts(corpus.train.shards, size))
    if replacement.distribution == "auxiliary":
        return AUGMENTATIONS[replacement.augmentation](model, corpus.tokenizer.unk_id, frequency_V)
    return auxiliary_free(replacement.distribution, size, replacement.alpha, frequency_V)


def write(
    settings: Config, corpus: Corpus, model: MaskedLanguageModel, folder: Path, world: int = 2, part: int = 37
) -> Path:
    """As `preprocess.write`, but with ranks one after the other, the last first."""
    about = {"auxiliary_hash": "a" * 32, "auxiliary_dtype": "fp32"}
    drawn_by = distribution(settings, corpus, model), about
    store = preprocess.begin(settings, corpus, drawn_by, folder, ALONE, part)
    for rank in reversed(range(world)):
        preprocess.write_parts(store, Ranks(rank, world, CPU))
    preprocess.finish(store)
    return folder


def read(settings: Config, corpus: Corpus, folder: Path) -> Stored:
    replacement = settings.run.replacement.model_copy(update={"store": str(folder)})
    run = settings.run.model_copy(update={"replacement": replacement})
    return open_for_run(dataclasses.replace(settings, run=run), corpus, ALONE)[0]


def corrupted(settings: Config, corpus: Corpus, draws: Distribution, batch: TokenBatch, value: float) -> CorruptedBatch:
    return corrupt(batch, masking(settings.run, corpus.tokenizer), draws, value)


def seen(settings: Config, corpus: Corpus, draws: Distribution, world: int = 1, steps: int = 1) -> list[Tensor]:
    """The corrupted global batch of every update, read as `world` ranks in `steps` accumulation steps do."""
    run = settings.run
    found = []
    for n in range(1, run.updates + 1):
        value = run.curriculum.strength(settings.u(n, len(corpus.train)), draws.floor)
        rows = torch.zeros(BATCH, 40, dtype=torch.int64)
        for rank in range(world):
            split = Share(BATCH // world // steps, steps, world, rank)
            for batch in Loader(corpus.train, split, run.seed, run.corruption.mask_fraction).batch(n - 1):
                tokens_BL = corrupted(settings, corpus, draws, batch, value).tokens_BL
                rows[batch.samples_B % BATCH, : tokens_BL.shape[1]] = tokens_BL
        found.append(rows)
    return found


def assert_same(online: list[Tensor], offline: list[Tensor]) -> None:
    assert len(online) == len(offline)
    for n, (one, other) in enumerate(zip(online, offline, strict=True), start=1):
        assert torch.equal(one, other), f"update {n}"


AXES: dict[str, dict[str, Any]] = {
    "temperature": {},
    "interpolation": {"replacement__augmentation": "term_frequency_interpolation", "curriculum__initial": 0.9},
    "uniform to one-hot": {"replacement__distribution": "uniform_to_smoothed_one_hot"},
    # 0.9 is no float32: the range of the store must hold it nevertheless
    "frequency to one-hot": {
        "replacement__distribution": "term_frequency_to_smoothed_one_hot",
        "curriculum__initial": 0.9,
    },
    "no curriculum": {"replacement__distribution": "term_frequency"},
}


@pytest.mark.parametrize("name", AXES)
def test_one_store_serves_every_schedule(
    name: str, make: Make, corpus: Corpus, model: MaskedLanguageModel, tmp_path: Path
) -> None:
    """Written by 2 ranks, read by 1 and by 3: at every update the corrupted tokens are those of training online."""
    whole = make(**AXES[name])
    folder = write(whole, corpus, model, tmp_path / "store")
    draws = distribution(whole, corpus, model)
    initial = whole.run.curriculum.initial
    for keys in (
        {},
        {"curriculum__schedule": "polynomial", "curriculum__rate": 2.0, "updates": UPDATES - 3},
        {"curriculum__schedule": "constant"},
        {"curriculum__schedule": "stepwise", "curriculum__rate": 3.0, "curriculum__initial": draws.floor + 0.4},
        {"curriculum__per": "epoch"},
    ):
        settings = make(**{**AXES[name], "curriculum__initial": initial, **keys})
        online = seen(settings, corpus, draws)
        assert_same(online, seen(settings, corpus, read(settings, corpus, folder), world=3))
    assert_same(seen(whole, corpus, draws), seen(whole, corpus, read(whole, corpus, folder), world=1, steps=2))


def test_the_curriculum_is_in_the_store(make: Make, corpus: Corpus, model: MaskedLanguageModel, tmp_path: Path) -> None:
    """What the tests above compare does change with the schedule."""
    stored = read(make(), corpus, write(make(), corpus, model, tmp_path / "store"))
    easy, hard = (
        seen(make(curriculum__schedule="constant", curriculum__initial=value), corpus, stored) for value in (2.0, 1.0)
    )
    share = sum(float((one != other).float().mean()) for one, other in zip(easy, hard, strict=True)) / UPDATES
    assert 0.01 < share < 0.12


@pytest.mark.parametrize("augmentation", ["temperature", "dropout", "attention_dropout", "drop_token"])
def test_fixed_store_holds_the_value_through_each_epoch(
    augmentation: str, make: Make, corpus: Corpus, model: MaskedLanguageModel, tmp_path: Path
) -> None:
    settings = make(replacement__augmentation=augmentation, curriculum__per="epoch", curriculum__rate=0.5)
    draws = distribution(settings, corpus, model)
    stored = read(settings, corpus, write(settings, corpus, model, tmp_path / "store"))
    online = seen(settings, corpus, draws)
    assert_same(online, seen(settings, corpus, stored, world=2, steps=3))
    values = {record.value for record in stored.plan.sets} - {None}
    assert len(values) == -(-UPDATES * BATCH // len(corpus.train)) > 2
    assert_same_evaluations(settings, corpus, draws, stored, [value for value in values if value is not None])


def test_a_curriculum_that_stands_still_has_one_piece(
    make: Make, corpus: Corpus, model: MaskedLanguageModel, tmp_path: Path
) -> None:
    """The fixed auxiliary of D.2: constant at 1."""
    settings = make(curriculum__schedule="constant", curriculum__initial=1.0)
    folder = write(settings, corpus, model, tmp_path / "store")
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["pieces"] == manifest["positions"] > 1000
    online = seen(settings, corpus, distribution(settings, corpus, model))
    assert_same(online, seen(settings, corpus, read(settings, corpus, folder)))


def test_evaluations_are_in_the_store(make: Make, corpus: Corpus, model: MaskedLanguageModel, tmp_path: Path) -> None:
    stored = read(make(), corpus, write(make(), corpus, model, tmp_path / "store"))
    assert_same_evaluations(make(), corpus, distribution(make(), corpus, model), stored, [2.0, 1.37, 1.0])


def assert_same_evaluations(
    settings: Config, corpus: Corpus, draws: Distribution, stored: Stored, values: list[float]
) -> None:
    for source, sequences, count in (("heldout", corpus.heldout, 12), ("reference", corpus.train, 48)):
        assert sequences is not None
        for value in values:
            batch = evaluation_batch(sequences, source, torch.arange(count), settings.run.seed)
            one, other = (corrupted(settings, corpus, which, batch, value) for which in (draws, stored))
            assert torch.equal(one.tokens_BL, other.tokens_BL)
            assert other.draws.entropy_M is None and other.draws.original_probability_M is None


def test_samples_are_found_in_any_order(make: Make, corpus: Corpus, model: MaskedLanguageModel, tmp_path: Path) -> None:
    settings = make()
    stored = read(settings, corpus, write(settings, corpus, model, tmp_path / "store", world=1, part=16))
    which, epochs = corpus.train.order(settings.run.seed, 0, UPDATES * BATCH)
    samples = torch.randperm(UPDATES * BATCH, generator=torch.Generator().manual_seed(1))[:100]
    batch = read_batch(corpus.train, samples, which[samples], epochs[samples])
    one, other = (
        corrupted(settings, corpus, draws, batch, 1.3) for draws in (distribution(settings, corpus, model), stored)
    )
    assert torch.equal(one.tokens_BL, other.tokens_BL)


def test_ranks_and_parts_do_not_change_the_contents(
    make: Make, corpus: Corpus, model: MaskedLanguageModel, tmp_path: Path
) -> None:
    """The same bytes from 1 rank and from 5."""
    one, five = (write(make(), corpus, model, tmp_path / f"{world}", world=world) for world in (1, 5))
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in five.iterdir()) and len(names) > 10
    assert all((one / name).read_bytes() == (five / name).read_bytes() for name in names)


def test_an_interrupted_store_goes_on(make: Make, corpus: Corpus, model: MaskedLanguageModel, tmp_path: Path) -> None:
    """Whole parts stay as they are; what is missing, cut off, foreign or half written is written again."""
    whole = write(make(), corpus, model, tmp_path / "whole")
    folder = tmp_path / "store"
    settings = make()
    drawn_by = distribution(settings, corpus, model), whole_about(whole)
    store = preprocess.begin(settings, corpus, drawn_by, folder, ALONE, 37)
    preprocess.write_parts(store, Ranks(1, 2, CPU))
    kept, cut, foreign = sorted(folder.glob("*.safetensors"))[:3]
    cut.write_bytes(cut.read_bytes()[:-9])
    foreign.write_bytes(write(make(seed=8), corpus, model, tmp_path / "other").joinpath(foreign.name).read_bytes())
    (folder / ".train-00000.safetensors.partial").write_bytes(b"half")
    before = (kept.read_bytes(), kept.stat().st_mtime_ns, kept.stat().st_ino)
    assert not (folder / MANIFEST).exists()
    with pytest.raises(UserError, match=r"not complete: finish it .*launch/preprocess.py"):
        read(settings, corpus, folder)

    write(settings, corpus, model, folder, world=3, part=50)  # a store that was begun keeps its own size of parts
    assert (kept.read_bytes(), kept.stat().st_mtime_ns, kept.stat().st_ino) == before
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in whole.iterdir())
    assert all((folder / name).read_bytes() == (whole / name).read_bytes() for name in names)


def test_killed_while_it_writes_its_plan(
    make: Make, corpus: Corpus, model: MaskedLanguageModel, tmp_path: Path
) -> None:
    (tmp_path / ".plan.json.4711").write_text("{")
    write(make(updates=1), corpus, model, tmp_path)
    assert not list(tmp_path.glob(".*")) and (tmp_path / MANIFEST).exists()


def whole_about(folder: Path) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((folder / MANIFEST).read_text())["plan"]["about"]
    return about


def test_damage_is_found(make: Make, corpus: Corpus, model: MaskedLanguageModel, tmp_path: Path) -> None:
    folder = write(make(), corpus, model, tmp_path / "store")
    part = sorted(folder.glob("train-*"))[3]
    data = part.read_bytes()
    part.write_bytes(data[:-50] + bytes([data[-50] ^ 4]) + data[-49:])
    with pytest.raises(UserError, match=rf"{part.name} was altered .*; remove that file and .*{MANIFEST}"):
        read(make(), corpus, folder)
    part.write_bytes(data[:-1])
    with pytest.raises(UserError, match=f"{part.name} has .* bytes where the manifest says"):
        read(make(), corpus, folder)
    part.unlink()
    with pytest.raises(UserError, match=f"{part.name} is missing"):
        read(make(), corpus, folder)
    (folder / MANIFEST).unlink()  # the remedy works
    write(make(), corpus, model, folder)
    assert part.read_bytes() == data and read(make(), corpus, folder)
    (folder / MANIFEST).write_text("{")
    with pytest.raises(UserError, match=f"{MANIFEST} cannot be read"):
        read(make(), corpus, folder)
    with pytest.raises(UserError, match=r"there is no store in .*: write one with deepspeed launch/preprocess.py"):
        read(make(), corpus, tmp_path / "nowhere")


@pytest.fixture(scope="module")
def axis_store(
    make: Make, corpus: Corpus, model: MaskedLanguageModel, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return write(make(), corpus, model, tmp_path_factory.mktemp("axis") / "store")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"seed": 8}, r"fast_electra.seed was 0 when it was written and is 8 here; set it back"),
        ({"corruption__mask_fraction": 0.2}, r"mask_fraction was 0.15 .* is 0.2"),
        ({"corpus__sequence_length": 48}, r"sequence_length was 40 .* is 48"),
        ({"replacement__augmentation": "term_frequency_interpolation"}, r"augmentation was temperature"),
        ({"replacement__distribution": "uniform"}, r"distribution was auxiliary"),
        ({"auxiliary__dtype": "bf16"}, r"auxiliary.dtype was fp32 .* is bf16"),
        (
            {"curriculum__initial": 2.5},
            r"covers fast_electra.curriculum.initial up to 2.0, the run asks for 2.5. Lower it",
        ),
        ({"updates": 11}, r"training stream .* up to 240, the run asks for 264"),
        ({"evaluation__sequences": 13}, r"evaluation.sequences up to 12, the run asks for 13"),
    ],
)
def test_store_of_another_run_is_refused(
    keys: dict[str, Any], message: str, make: Make, corpus: Corpus, axis_store: Path
) -> None:
    with pytest.raises(UserError, match=rf"{message}.* or write a new one: deepspeed launch/preprocess.py") as caught:
        read(make(**keys), corpus, axis_store)
    assert "\n" not in str(caught.value) and str(axis_store) in str(caught.value)


def test_store_of_another_corpus_or_auxiliary_is_refused(
    make: Make, corpus: Corpus, axis_store: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"the corpus was [0-9a-f]{12} .* is bbbbbbbbbbbb here"):
        read(make(), dataclasses.replace(corpus, hash="b" * 32), axis_store)
    (tmp_path / "model").mkdir()
    described = {"kind": "mlm", "encoder": make().run.model.model_dump()}
    (tmp_path / "model" / "model.json").write_text(json.dumps(described | {"hash": "c" * 32}))
    with pytest.raises(UserError, match=r"the auxiliary model was aaaaaaaaaaaa .* is cccccccccccc here"):
        read(make(auxiliary__run=str(tmp_path)), corpus, axis_store)
    (tmp_path / "model" / "model.json").write_text(json.dumps(described | {"hash": "a" * 32}))
    assert read(make(auxiliary__run=str(tmp_path)), corpus, axis_store)


def test_a_run_may_need_less_than_the_store_has(make: Make, corpus: Corpus, axis_store: Path) -> None:
    less = {"updates": 5, "curriculum__initial": 1.2, "evaluation__sequences": 3, "train_batch_size": 8}
    assert read(make(**less), corpus, axis_store).plan.kind == "axis"
    assert read(make(updates=UPDATES * 2, train_batch_size=BATCH // 2), corpus, axis_store)


def test_fixed_store_is_tied_to_its_schedule(
    make: Make, corpus: Corpus, model: MaskedLanguageModel, tmp_path: Path
) -> None:
    settings = make(curriculum__per="epoch")
    folder = write(settings, corpus, model, tmp_path / "store")
    for keys, message in (
        ({"curriculum__schedule": "constant"}, "curriculum.schedule was exponential"),
        ({"curriculum__rate": 0.3}, "curriculum.rate was 0.1"),
        ({"curriculum__initial": 1.5}, "curriculum.initial was 2.0"),
        ({"curriculum__per": "update"}, "curriculum.per was epoch .* is update"),
        ({"updates": UPDATES - 1}, "updates was 10"),
        ({"train_batch_size": 8}, "train_batch_size was 24"),
    ):
        with pytest.raises(UserError, match=message):
            read(make(**{"curriculum__per": "epoch", **keys}), corpus, folder)
    stored = read(settings, corpus, folder)
    batch = evaluation_batch(corpus.train, "reference", torch.arange(3), settings.run.seed)
    with pytest.raises(UserError, match=r"holds no draws at temperature 1\.5"):
        corrupted(settings, corpus, stored, batch, 1.5)


def test_value_outside_the_axis_is_refused(make: Make, corpus: Corpus, axis_store: Path) -> None:
    batch = evaluation_batch(corpus.train, "reference", torch.arange(3), 0)
    for value in (2.01, 0.99):
        with pytest.raises(UserError, match=f"holds no draws at temperature {value}"):
            corrupted(make(), corpus, read(make(), corpus, axis_store), batch, value)


def test_what_cannot_be_stored_or_continued_is_refused(
    make: Make, corpus: Corpus, model: MaskedLanguageModel, tmp_path: Path
) -> None:
    settings = make(replacement__augmentation="drop_token")
    with pytest.raises(UserError, match=r"drop_token .* --set fast_electra.curriculum.per=epoch"):
        write(settings, corpus, model, tmp_path / "store")

    store = write(make(), corpus, model, tmp_path / "begun")
    (store / MANIFEST).unlink()
    for keys, message in (
        ({"seed": 8}, "fast_electra.seed was 0 and is now 8"),
        ({"curriculum__initial": 1.5}, "curriculum.initial was 2.0 and is now 1.5"),
        ({"curriculum__per": "epoch"}, "kind was axis and is now fixed"),
    ):
        with pytest.raises(UserError, match=rf"unfinished store of another run: .*{message}.*choose another --output"):
            write(make(**keys), corpus, model, store)

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("dear")
    with pytest.raises(UserError, match=r"holds something else than a store .*choose another --output"):
        write(make(), corpus, model, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
