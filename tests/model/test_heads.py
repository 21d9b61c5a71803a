"""The models' sizes are the paper's, and the vocabulary head sees masked positions only."""

import pytest
import small
import torch

from fast_electra.batch import Layout
from fast_electra.config import RunConfig
from fast_electra.model import heads
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.heads import Discriminator, MaskedLanguageModel, count_parameters
from fast_electra.recipes import recipe


def millions(model: torch.nn.Module) -> str:
    return f"{count_parameters(model) / 1e6:.0f}"


def settings(name: str, objective: str) -> EncoderSettings:
    return EncoderSettings.model_validate(recipe(name, objective)["model"])


@pytest.mark.parametrize(
    ("name", "main", "auxiliary", "embedding"), [("base", "184", "127", "98"), ("large", "434", "208", "131")]
)
def test_parameter_counts_print_as_table_2(
    name: str, main: str, auxiliary: str, embedding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "initialize", lambda *_: None)  # shapes only: no memory for the weights is needed
    with torch.device("meta"):
        discriminator = Discriminator.new(settings(name, "rtd"))
        masked_model = MaskedLanguageModel(settings(name, "mlm"))
    assert millions(discriminator) == main
    assert millions(masked_model) == auxiliary
    assert millions(discriminator.encoder.embedding) == embedding


def test_small_has_the_size_of_electra_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "initialize", lambda *_: None)
    with torch.device("meta"):
        assert 13.2e6 < count_parameters(Discriminator.new(settings("small", "rtd"))) < 14.2e6


def test_vocabulary_head_is_tied_and_runs_at_masked_positions_only() -> None:
    model = small.masked_lm(vocabulary_size=70, embedding_size=16)
    tokens = torch.randint(5, 70, (24,), generator=torch.Generator().manual_seed(0))
    positions, layout = torch.tensor([3, 12, 20]), Layout.of(torch.tensor([12, 12]))
    logits = model(tokens, layout, positions)
    every = model(tokens, layout, torch.arange(24))
    assert logits.shape == (3, 70) and torch.allclose(logits, every[positions], atol=1e-6)
    hidden = model(tokens, layout, positions, hidden_only=True)
    assert torch.allclose(hidden @ model.encoder.embedding.weight.T + model.bias, logits, atol=1e-6)
    logits.sum().backward()
    assert (
        model.encoder.embedding.weight.grad is not None
        and sum(p is model.encoder.embedding.weight for p in model.parameters()) == 1
    )


def test_recipes_are_whole_run_configs() -> None:
    for name in ("tiny", "small", "base", "large"):
        for objective in ("rtd", "mlm"):
            preset = recipe(name, objective)
            extra = {"auxiliary": {"run": "runs/auxiliary"}} if objective == "rtd" else {}
            RunConfig.model_validate({"objective": objective, "recipe": name, "run": "runs/x", **preset, **extra})
