"""In one process gradients skip DeepSpeed's reduction: the same weights to the bit. And AdaMax, by its definition."""

from typing import Any

import pytest
import torch
from ranks import Pool
from small import sizes
from torch import Tensor

from fast_electra import deepspeed_config
from fast_electra.batch import Layout
from fast_electra.deepspeed_config import Machine
from fast_electra.model.heads import Discriminator
from fast_electra.training import engines
from fast_electra.training.engines import Ranks

UPDATES, MICRO_BATCHES = 4, 3


class Model(torch.nn.Module):
    """With a bias of odd size, and a weight that gets no gradient in some micro-batches."""

    def __init__(self) -> None:
        super().__init__()
        self.discriminator = Discriminator.new(sizes(layers=2, dropout=0.1, activation_checkpointing=True))
        self.sometimes = torch.nn.Linear(12, 7)

    def forward(self, tokens_T: Tensor, n: int) -> Tensor:
        logits_BL = self.discriminator(tokens_T, Layout.of(torch.tensor([12, 12]))).view(2, 12)
        return self.sometimes(logits_BL).square().sum() if n % 2 else logits_BL.square().sum()


def engine(bf16: bool, **changes: Any) -> Any:
    tree = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": MICRO_BATCHES,
        "gradient_clipping": 0.01,
        "optimizer": {"type": "Adam", "params": {"lr": 1e-2, "torch_adam": True}},
        "zero_optimization": {"reduce_bucket_size": 20_000, "parameter_alignment": True},
        "bf16": {"enabled": bf16},
    }
    config = deepspeed_config.resolve(tree | changes, 10, Machine(), "test")
    torch.manual_seed(1)
    return engines.training_engine(Model(), config)


def trained(engine: Any) -> tuple[list[float], dict[str, Tensor]]:
    """Norms of the gradients and weights after a few updates; the third is not finite."""
    engine.train()
    norms = []
    for update in range(UPDATES):
        torch.manual_seed(update)
        for n in range(MICRO_BATCHES):
            loss = engine(torch.randint(0, 1000, (24,)), update + n)
            engine.backward(loss * (torch.nan if (update, n) == (2, 1) else 1.0))
            engine.step()
        norms.append(float(engine.get_global_grad_norm()))
        assert engines.skipped(engine) is (update == 2)
    return norms, engines.full_weights(engine)


def compare(bf16: bool, ranks: Ranks) -> None:
    spare = engines.spare_reduction
    direct = engine(bf16)
    engines.spare_reduction = lambda optimizer: None
    try:
        reduced = engine(bf16)
    finally:
        engines.spare_reduction = spare
    assert reduced.optimizer._grad_acc_hooks and not direct.optimizer._grad_acc_hooks
    (norms, weights), (other_norms, other_weights) = trained(direct), trained(reduced)
    assert norms == other_norms and norms[2] == float("inf")
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
    start = engines.full_weights(engine(bf16))
    assert all(not torch.equal(weights[name], start[name]) for name in ("sometimes.bias", "discriminator.output.bias"))


@pytest.mark.parametrize("bf16", [False, True])
def test_one_process_gets_the_same_weights_without_reduction(pools: dict[int, Pool], bf16: bool) -> None:
    pools[1].run(compare, bf16)


def keeps(ranks: Ranks) -> None:
    """Where a user names a precision of communication or of sums, DeepSpeed does as it is told."""
    for changes in ({"communication_data_type": "bf16"}, {"data_types": {"grad_accum_dtype": "bf16"}}):
        assert engine(True, **changes).optimizer._grad_acc_hooks


def test_what_a_user_asks_of_the_reduction_is_done(pools: dict[int, Pool]) -> None:
    pools[1].run(keeps)


def adamax(ranks: Ranks) -> None:
    """Five updates of an embedding whose last rows no token names, beside the definition in fp64.

    By decoupled decay such a row shrinks by lr * decay of itself. If the decay went through the gradient, AdaMax would
    move each of its weights by a whole lr.
    """
    lr, decay, beta1, beta2, eps = 0.01, 0.1, 0.9, 0.98, 1e-6
    params = {"lr": lr, "betas": [beta1, beta2], "eps": eps, "weight_decay": decay}
    tree = {"train_micro_batch_size_per_gpu": 3, "gradient_clipping": 1e6}
    tree |= {"optimizer": {"type": "Adamax", "params": params}}
    torch.manual_seed(0)
    model = torch.nn.Embedding(7, 4)
    start_VD = weight_VD = model.weight.detach().double()
    own = engines.training_engine(model, deepspeed_config.resolve(tree, 10, Machine(ranks.world), "test"))
    own.train()
    mean_VD, size_VD = torch.zeros_like(weight_VD), torch.zeros_like(weight_VD)
    for update in range(1, 6):
        tokens = torch.tensor([0, 1, update % 4])
        own.backward((own(tokens).double() * torch.arange(1.0, 13).view(3, 4)).sum())
        own.step()
        gradient_VD = torch.zeros_like(weight_VD).index_add(0, tokens, torch.arange(1.0, 13).double().view(3, 4))
        mean_VD = beta1 * mean_VD + (1 - beta1) * gradient_VD
        size_VD = torch.maximum(beta2 * size_VD, gradient_VD.abs() + eps)
        weight_VD = weight_VD * (1 - lr * decay) - lr / (1 - beta1**update) * mean_VD / size_VD
    found_VD = engines.full_weights(own)["weight"].double()
    torch.testing.assert_close(found_VD, weight_VD, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found_VD[4:], start_VD[4:] * (1 - lr * decay) ** 5, rtol=1e-6, atol=0)


@pytest.mark.parametrize("processes", [1, 2])
def test_adamax_leaves_weights_without_a_gradient_but_for_their_decay(pools: dict[int, Pool], processes: int) -> None:
    pools[processes].run(adamax)
