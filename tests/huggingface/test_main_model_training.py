"""Encoders of transformers under ZeRO-2 on two ranks: six architectures, in fp32 and bf16."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ranks import Pool
from torch import Tensor

from fast_electra import deepspeed_config
from fast_electra.batch import Layout
from fast_electra.deepspeed_config import Machine
from fast_electra.model.heads import Discriminator
from fast_electra.training import engines
from fast_electra.training.engines import Ranks
from fast_electra.training.optimizer import parameter_groups

transformers = pytest.importorskip("transformers")
from huggingface.zoo import KINDS, V, opened, write  # noqa: E402 (it needs transformers)

UPDATES, ADAM = 4, {"lr": 1e-2, "eps": 1e-2, "weight_decay": 0.1}  # eps: rounding of tiny gradients hardly moves


def loss_of(forward: Any, update: int, rank: int) -> Tensor:
    """Replaced tokens in two sequences of one rank."""
    tokens_T = torch.randint(5, V, (21,), generator=torch.Generator().manual_seed(10 * update + rank))
    labels_T = (tokens_T % 3 == 0).float()
    return F.binary_cross_entropy_with_logits(forward(tokens_T, Layout.of(torch.tensor([14, 7]))).float(), labels_T)


def trained(folder: Path, bf16: bool, ranks: Ranks, **settings: Any) -> dict[str, Tensor]:
    tree = {
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": {"type": "AdamW", "params": ADAM | {"torch_adam": True}},
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 20_000},
        "bf16": {"enabled": bf16},
    }
    config = deepspeed_config.resolve(tree, UPDATES, Machine(ranks.world), "test")
    engine = engines.training_engine(opened(folder, **settings), config)
    engine.train()
    for update in range(UPDATES):
        torch.manual_seed(update)
        engine.backward(loss_of(engine, update, ranks.rank))
        engine.step()
    return engines.full_weights(engine)


def alone(model: Discriminator, world: int) -> dict[str, Tensor]:
    """The same updates by torch, in one process."""
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), **ADAM)
    for update in range(UPDATES):
        optimizer.zero_grad()
        (sum(loss_of(model, update, rank) for rank in range(world)) / world).backward()
        optimizer.step()
    return dict(model.named_parameters())


def compare(folder: Path, ranks: Ranks) -> None:
    start = {name: weight.clone() for name, weight in opened(folder).named_parameters()}
    plain = trained(folder, False, ranks, dropout=0.0)
    expected = alone(opened(folder, dropout=0.0), ranks.world)
    rounded = trained(folder, True, ranks, dropout=0.0)
    again, recomputed = (
        trained(folder, False, ranks, dropout=0.1, activation_checkpointing=on) for on in (False, True)
    )
    for name, weight in plain.items():
        assert torch.allclose(weight, expected[name], atol=1e-5), name
        assert torch.allclose(weight, rounded[name], atol=0.02), name
        assert torch.equal(again[name], recomputed[name]), name
        if ".pooler." in name:  # without a gradient, and not decayed
            assert torch.equal(weight, start[name]) and torch.equal(rounded[name], start[name].bfloat16().float())
        elif weight.dim() > 1:  # the bias of keys changes no attention
            assert not torch.equal(weight, start[name]), name


@pytest.mark.parametrize("family", KINDS)
def test_two_ranks_train_as_torch_does_and_recomputed_layers_change_no_bit(
    pools: dict[int, Pool], tmp_path: Path, family: str
) -> None:
    pools[2].run(compare, write(tmp_path, family))


@pytest.mark.parametrize("family", KINDS)
def test_matrices_decay_and_tables_of_distances_do_not(tmp_path: Path, family: str) -> None:
    model = opened(write(tmp_path, family))
    names = {id(weight): name for name, weight in model.named_parameters()}
    decayed, others = ({names[id(weight)] for weight in group["params"]} for group in parameter_groups(model, 0.1))
    assert not [name for name in decayed if "bias" in name or "norm" in name.lower() or "rel_" in name]
    tables = [name for name in others if model.get_parameter(name).dim() > 1]
    wanted = {"mpnet": "relative_attention_bias.weight", "deberta-v2": "rel_embeddings.weight"}
    assert [name.split("encoder.")[-1] for name in tables] == ([wanted[family]] if family in wanted else [])
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    assert decayed | others == set(names.values()) - frozen
