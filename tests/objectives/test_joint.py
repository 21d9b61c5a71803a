"""Joint training is L_MLM + lambda L_RTD with replacements drawn from the auxiliary itself; sharing is what it says."""

from functools import reduce
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import Corpus

from fast_electra.batch import TokenBatch
from fast_electra.corpus.loader import Loader, Share
from fast_electra.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from fast_electra.corpus.sequences import Sequences
from fast_electra.corpus.shards import Shards
from fast_electra.corruption import Masking, corrupt, mask
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.files import load_model
from fast_electra.model.heads import Discriminator, MaskedLanguageModel, count_parameters
from fast_electra.model.joint import SHARINGS, JointModel
from fast_electra.objectives.joint import Joint, JointSettings
from fast_electra.objectives.mlm import masked_loss
from fast_electra.objectives.rtd import replaced_loss
from fast_electra.replacement.auxiliary import Temperature
from fast_electra.training.loop import added

MASKING = Masking(fraction=0.15, mask_id=4)
EMBEDDING = "encoder.embedding.weight"


@pytest.fixture(scope="module")
def sizes(tiny_corpus: Corpus) -> EncoderSettings:
    return EncoderSettings(
        vocabulary_size=tiny_corpus.vocabulary_size,
        layers=2,
        hidden_size=32,
        ffn_size=64,
        heads=2,
        initial_std=0.3,
        dropout=0.0,
        attention_dropout=0.0,
    )


@pytest.fixture(scope="module")
def parts(tiny_corpus: Corpus) -> list[TokenBatch]:
    sequences = Sequences(Shards.open(tiny_corpus.shards), SentencePieceTokenizer.load(tiny_corpus.tokenizer), 40)
    return Loader(sequences, Share(4, 4), 2, 0.15).batch(1)


def joint(sizes: EncoderSettings, sharing: str, loss_weight: float = 50.0) -> Joint:
    settings = JointSettings.model_validate(
        {"loss_weight": loss_weight, "auxiliary_layers": 1, "embedding_sharing": sharing}
    )
    return Joint(JointModel(sizes, 1, sharing, seed=3), settings, MASKING)


@torch.no_grad()
def test_loss_is_the_weighted_sum_of_both_means(sizes: EncoderSettings, parts: list[TokenBatch]) -> None:
    """Computed by hand, from the auxiliary as Fast-ELECTRA would draw from it at T = 1."""
    objective = joint(sizes, "shared", loss_weight=7.0)
    share = sum(float(objective.loss(objective.model, part, None)[0]) for part in parts)
    auxiliary, main = objective.model.auxiliary, objective.model.main
    mlm, rtd = [], []
    for part in parts:
        corrupted = corrupt(part, MASKING, Temperature(auxiliary, unk_id=1), 1.0)
        masked = corrupted.masked
        original_M = part.tokens_T[masked.positions_M]
        logits_MV = auxiliary(masked.tokens_T, part.layout, masked.positions_M)
        mlm.append(F.cross_entropy(logits_MV, original_M, reduction="none"))
        logits_T = main(corrupted.tokens_T, part.layout)
        rtd.append(F.binary_cross_entropy_with_logits(logits_T, corrupted.replaced_T.float(), reduction="none"))
    means = float(torch.cat(mlm).mean()), float(torch.cat(rtd).mean())
    assert share == pytest.approx(means[0] + 7.0 * means[1], rel=1e-5)
    row = objective.summary(reduce(added, (objective.loss(objective.model, part, None)[1] for part in parts)))
    assert (row["mlm_loss"], row["rtd_loss"]) == pytest.approx(means, rel=1e-5)
    assert row["loss"] == pytest.approx(share, rel=1e-5)


def gradients(objective: Joint, batch: TokenBatch, which: str) -> dict[str, torch.Tensor | None]:
    """Gradients by name, of the MLM loss alone or of detection alone."""
    objective.model.zero_grad()
    if which == "mlm":
        masked = mask(batch, MASKING)
        masked_loss(objective.model(masked.tokens_T, batch.layout, masked.positions_M), masked)[0].backward()
    else:
        replaced_loss(objective.judge(objective.model, batch, None)).backward()
    return {name: parameter.grad for name, parameter in objective.model.named_parameters()}


@pytest.mark.parametrize("sharing", SHARINGS)
def test_whose_loss_pulls_on_which_embedding(sizes: EncoderSettings, parts: list[TokenBatch], sharing: str) -> None:
    objective = joint(sizes, sharing)
    of_mlm, of_rtd = (gradients(objective, parts[0], which) for which in ("mlm", "rtd"))
    own, others = f"main.{EMBEDDING}", f"auxiliary.{EMBEDDING}"
    assert of_mlm[others] is not None and of_mlm[others].any()
    assert (own in of_rtd) == (sharing != "shared")
    reached = of_rtd[others] is not None and bool(of_rtd[others].any())
    assert reached == (sharing == "shared")
    if sharing != "shared":
        assert of_rtd[own] is not None and of_rtd[own].any()
        assert of_mlm[own] is None or not of_mlm[own].any()
    assert all(gradient is None for name, gradient in of_mlm.items() if name.startswith("main.") and name != own)


@pytest.mark.parametrize("sharing", SHARINGS)
@torch.no_grad()
def test_exported_models_are_whole_and_compute_the_same(
    sizes: EncoderSettings, parts: list[TokenBatch], sharing: str, tmp_path: Path
) -> None:
    objective = joint(sizes, sharing)
    if sharing == "gradient_disentangled":
        objective.model.main.encoder.embedding.weight.normal_(0, 0.1)  # as after training: no longer zero
    weights = {name: parameter.detach() for name, parameter in objective.model.named_parameters()}
    exports = objective.exports(weights)
    assert [export.folder for export in exports] == ["model", "auxiliary/model"]
    kinds, models = ("rtd", "mlm"), (objective.model.main, objective.model.auxiliary)
    for export, kind, genuine in zip(exports, kinds, models, strict=True):
        export.write(tmp_path / export.folder)
        model, _ = load_model(tmp_path / export.folder, kind, "")
        arguments = [parts[0].tokens_T, parts[0].layout]
        arguments += [torch.arange(9)] if kind == "mlm" else []
        assert torch.equal(model(*arguments), genuine(*arguments))


def test_parameters_are_counted_once(sizes: EncoderSettings) -> None:
    """Table 1's auxiliary has no embedding of its own in the original method."""
    alone = count_parameters(Discriminator.new(sizes)) + count_parameters(
        MaskedLanguageModel(sizes.model_copy(update={"layers": 1}))
    )
    table = sizes.vocabulary_size * sizes.hidden_size
    counts = [count_parameters(joint(sizes, sharing).model) for sharing in SHARINGS]
    assert counts == [alone - table, alone, alone]


@torch.no_grad()
def test_the_main_model_starts_as_fast_electras_does(sizes: EncoderSettings) -> None:
    """One seed, one start: what differs between the two methods is the objective."""
    model, alone = joint(sizes, "none").model.main, Discriminator.new(sizes, seed=3)
    assert all(torch.equal(weight, alone.state_dict()[name]) for name, weight in model.state_dict().items())
