"""The objective of fine-tuning, without a run."""

import pytest
import torch

from fast_electra.batch import Layout, TokenBatch
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.heads import SequenceClassifier
from fast_electra.objectives.finetuning import FineTuning
from fast_electra.objectives.objective import Export


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_regression_far_from_zero_is_not_rounded_away(dtype: torch.dtype) -> None:
    """Labels are years. In bf16 a model that gave them itself would know the multiples of 8 only."""
    settings = EncoderSettings(
        vocabulary_size=60, layers=1, hidden_size=32, ffn_size=64, heads=2, initial_std=0.3, initialization="bert"
    )
    model = SequenceClassifier.new(settings, 1, seed=1).eval()
    years = torch.arange(1940, 1980, dtype=torch.float64)
    written: dict[str, torch.Tensor] = {}

    def exports(weights: dict[str, torch.Tensor]) -> list[Export]:
        written.update(weights)
        return []

    objective = FineTuning(model, {"train": years, "dev": years}, {"dev": 40}, True, 40, lambda *_: {"p": 1.0}, exports)
    objective.exports({name: weight.float() for name, weight in model.state_dict().items()})
    rows = torch.arange(40)
    batch = TokenBatch(rows, Layout.of(torch.ones(40).long()), rows, "dev", sequences_B=rows)
    found = objective.evaluate(model.to(dtype), batch, None)["dev outputs"][:, 0]
    assert abs(float(found.mean()) - float(years.mean())) < 3  # the model begins near the mean
    assert len(found.unique()) > 30  # and tells its rows apart

    plain = SequenceClassifier.new(settings, 1).eval()
    plain.load_state_dict(written)
    assert torch.allclose(plain(batch.tokens_T, batch.layout)[:, 0].double(), found, atol=0.05)
