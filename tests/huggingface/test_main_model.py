"""Encoders of transformers as the main model: what they compute, which head they get, and what is saved of them."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from fast_electra.batch import Layout
from fast_electra.huggingface.padding import shorter
from fast_electra.model.heads import DebertaDiscriminator, Discriminator
from fast_electra.objectives.objective import export_main_model

transformers = pytest.importorskip("transformers")
from huggingface.zoo import KINDS, V, config_of, notes_of, opened, write  # noqa: E402 (it needs transformers)

LENGTHS = (9, 24, 2, 15)
TOKENS = [torch.randint(5, V, (n,), generator=torch.Generator().manual_seed(n)) for n in LENGTHS]
HEAD = ("transform.weight", "transform.bias", "output.weight", "output.bias")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: write(tmp_path_factory.mktemp(family), family) for family in KINDS}


def run(model: torch.nn.Module, rows: list[Tensor]) -> Tensor:
    found: Tensor = model(torch.cat(rows), Layout.of(torch.tensor([len(row) for row in rows])))
    return found


def moved(model: Discriminator) -> dict[str, Tensor]:
    """What a training might make of the weights: only those that are trained move, and an engine rounds the others."""
    return {
        name: weight.detach() + 0.01 if weight.requires_grad else weight.detach().bfloat16().float()
        for name, weight in model.named_parameters()
    }


def saved(model: Discriminator, weights: dict[str, Tensor], run: Path) -> Path:
    folder, write, check = export_main_model(model, weights)
    write(run / folder, tokenizer="", evaluation={"heldout_auc": 0.9})
    check(run / folder, "")
    return run / folder


@pytest.mark.parametrize("family", KINDS)
def test_a_sequence_is_the_same_alone_and_in_a_ragged_batch(folders: dict[str, Path], family: str) -> None:
    model = opened(folders[family]).eval()
    states_TD = run(model.encoder, TOKENS)
    for row, found in zip(TOKENS, states_TD.split(LENGTHS), strict=True):
        assert torch.allclose(found, run(model.encoder, [row]), atol=2e-5)
        own = model.encoder.model(input_ids=row[None]).last_hidden_state[0]  # transformers, without any padding
        assert torch.allclose(found, own, atol=2e-5)
    run(model, TOKENS).square().sum().backward()
    together = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}
    model.zero_grad()
    for row in TOKENS:
        run(model, [row]).square().sum().backward()
    for name, gradient in together.items():
        alone = model.get_parameter(name).grad
        assert torch.allclose(gradient, alone, atol=1e-4 * float(alone.abs().max()) + 1e-5), name


def test_short_sequences_are_padded_apart_where_that_saves_an_eighth() -> None:
    for lengths, wanted in (
        ([128, 128, 20, 9, 120], [False, False, True, True, False]),
        ([128, 9, 128, 128, 128, 128, 128, 128, 128], None),  # one of nine saves less
        ([50, 49, 48], None),
        ([7], None),
    ):
        found = shorter(Layout.of(torch.tensor(lengths)))
        assert (None if found is None else found.tolist()) == wanted


@pytest.mark.parametrize("family", KINDS)
def test_a_model_is_saved_as_what_it_was_and_goes_on_from_there(
    folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    model, notes = notes_of(folders[family])
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if ".pooler." in name}
    assert bool(frozen) == any("get no gradient" in note for note in notes)
    start, weights = {name: weight.clone() for name, weight in model.named_parameters()}, moved(model)
    folder = saved(model, weights, tmp_path)
    expected = weights | {name: start[name] for name in frozen}
    again, info = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(again) is type(model.encoder.model) and not info["missing_keys"]
    for name, weight in again.named_parameters():
        assert weight.dtype == torch.float32 and torch.equal(weight, expected[f"encoder.model.{name}"])
    second, notes = notes_of(folder, seed=8)
    assert any("has a head for replaced tokens" in note for note in notes)
    assert all(torch.equal(weight, expected[name]) for name, weight in second.named_parameters())
    before, after = (json.loads((place / "config.json").read_text()) for place in (folders[family], folder))
    assert before | {"architectures": 0} == after | {"architectures": 0}


@torch.no_grad()
def test_the_head_of_electra_goes_on(tmp_path: Path) -> None:
    write(tmp_path / "electra", "electra", "AutoModelForPreTraining", hidden_act="relu")
    model = opened(tmp_path / "electra").eval()
    theirs = transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "electra").eval()
    for row, logits in zip(TOKENS, run(model, TOKENS).split(LENGTHS), strict=True):
        assert torch.allclose(logits, theirs(input_ids=row[None]).logits[0], atol=1e-4)
    weights = moved(model)
    folder = saved(model, weights, tmp_path)
    back, info = transformers.AutoModelForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert type(back) is transformers.ElectraForPreTraining
    assert not info["missing_keys"] and not info["unexpected_keys"]
    model.load_state_dict(weights)
    assert torch.allclose(run(model, TOKENS[:1]), back.eval()(input_ids=TOKENS[0][None]).logits[0], atol=1e-4)


@torch.no_grad()
def test_the_head_of_debertav3_goes_on(tmp_path: Path) -> None:
    """mask_predictions: classifier(gelu(dense(LayerNorm(h + h of [CLS])))), in Microsoft's form of a file."""
    torch.manual_seed(5)
    dense, norm, classifier = torch.nn.Linear(32, 32), torch.nn.LayerNorm(32, 1e-7), torch.nn.Linear(32, 1)
    torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    parts = {"dense": dense, "LayerNorm": norm, "classifier": classifier}
    source = write(tmp_path / "deberta", "deberta-v2")
    held = {f"deberta.{name}": tensor for name, tensor in load_file(source / "model.safetensors").items()}
    for layer, module in parts.items():
        held |= {f"mask_predictions.{layer}.{name}": tensor for name, tensor in module.state_dict().items()}
    save_file({name: tensor.half() for name, tensor in held.items()}, source / "model.safetensors", {"format": "pt"})
    model, notes = notes_of(source)
    assert isinstance(model, DebertaDiscriminator) and "mask_predictions.classifier.weight" in notes[-1]
    for module in parts.values():
        module.half().float()
    for row, logits in zip(TOKENS, run(model.eval(), TOKENS).split(LENGTHS), strict=True):
        h = model.encoder.model(input_ids=row[None]).last_hidden_state[0]
        assert torch.allclose(logits, classifier(F.gelu(dense(norm(h + h[0])))).squeeze(-1), atol=1e-4)
    weights = moved(model)
    folder = saved(model, weights, tmp_path)
    names = load_file(folder / "model.safetensors").keys()
    assert {name for name in held if name.startswith("mask_predictions.")} == {
        name for name in names if name.startswith("mask_predictions.")
    }
    again = opened(folder)
    assert isinstance(again, DebertaDiscriminator)
    assert all(torch.equal(weight, weights[name]) for name, weight in again.named_parameters())


def test_new_weights_follow_from_the_seed(folders: dict[str, Path], tmp_path: Path) -> None:
    first, again, other = (opened(folders["bert"], seed) for seed in (1, 1, 2))
    for name in HEAD:
        assert torch.equal(first.get_parameter(name), again.get_parameter(name))
    assert not torch.equal(first.transform.weight, other.transform.weight)
    (tmp_path / "small.json").write_text(json.dumps(config_of("roberta", pad_token_id=1).to_dict()))
    made, same, another = (opened(tmp_path / "small.json", seed).state_dict() for seed in (1, 1, 2))
    word = "encoder.model.embeddings.word_embeddings.weight"
    assert all(torch.equal(made[name], same[name]) for name in made) and not torch.equal(made[word], another[word])
    assert not any("pooler" in name for name in made)
    scratch = opened(folders["bert"], initialization="random")
    assert not torch.equal(scratch.encoder.model.embeddings.word_embeddings.weight, first.state_dict()[word])
    model = opened(tmp_path / "small.json", 1)
    config = json.loads((saved(model, moved(model), tmp_path) / "config.json").read_text())
    assert config["pad_token_id"] == 0  # the tokenizer's: roberta counts positions by it


def test_rates_of_dropout_are_the_models_or_the_given_one(folders: dict[str, Path], tmp_path: Path) -> None:
    rows = [TOKENS[1]]
    for family, rate, same in (
        ("bert", None, False),
        ("bert", 0.0, True),
        ("modernbert", None, True),
        ("modernbert", 0.5, False),
    ):
        model = opened(folders[family], dropout=rate)
        assert model.training and torch.equal(run(model, rows), run(model, rows)) is same
    model = opened(folders["bert"], dropout=0.3)
    folder = saved(model, moved(model), tmp_path)
    assert json.loads((folder / "config.json").read_text())["hidden_dropout_prob"] == 0.1


@pytest.mark.parametrize("family", [*KINDS, "albert"])
def test_checkpointed_layers_give_the_same_gradients_with_dropout(
    folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    folder = folders.get(family) or write(tmp_path, family)
    (plain, whole), (again, part) = (_gradients(folder, checkpointing) for checkpointing in (False, True))
    assert part < 0.6 * whole
    for name, gradient in plain.items():
        assert (gradient is None) is (again[name] is None)
        assert gradient is None or torch.equal(gradient, again[name]), name


def _gradients(folder: Path, checkpointing: bool) -> tuple[dict[str, Tensor | None], int]:
    """Return the gradient of each weight, and how many numbers were kept for the backward pass."""
    model, kept = opened(folder, dropout=0.2, activation_checkpointing=checkpointing), []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = run(model, TOKENS).square().sum()
    loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters()}, sum(kept)
