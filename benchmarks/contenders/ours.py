"""Our own step for replaced-token detection, in plain PyTorch and in the DeepSpeed engine."""

from typing import Any

import torch
from torch import Tensor

from contenders.common import (
    ADAM,
    CLIPPING,
    DEVICE,
    MASK,
    MASK_FRACTION,
    TEMPERATURE,
    UNK,
    WEIGHT_DECAY,
    Sizes,
    Step,
    adam,
    autocast,
    update,
)
from fast_electra.batch import TokenBatch
from fast_electra.corruption import Masking
from fast_electra.curriculum import CurriculumSettings
from fast_electra.hosts import operators
from fast_electra.model.heads import Discriminator, MaskedLanguageModel
from fast_electra.objectives.rtd import RTD
from fast_electra.replacement.auxiliary import Auxiliary, Temperature
from fast_electra.training.engines import DTYPES


def objective(size: Sizes, dtype: torch.dtype) -> RTD:
    """Return the objective with an untrained auxiliary. A step costs the same as with a trained one."""
    frozen = MaskedLanguageModel(size.auxiliary, seed=1).requires_grad_(False).eval().to(DEVICE, dtype)
    main = Discriminator.new(size.discriminator, seed=2).to(DEVICE)
    return RTD(main, Temperature(frozen, UNK), CurriculumSettings(), Masking(MASK_FRACTION, MASK))


def plain(size: Sizes, dtype: torch.dtype) -> tuple[RTD, Step]:
    """Return the objective and its step in plain PyTorch.

    The step has everything that a training run does for an update: the frozen auxiliary, sampling, the discriminator,
    the sums for the metrics, clipping and Adam.

    Args:
        size: of the models.
        dtype: precision of the frozen auxiliary, and of autocast around the discriminator.
    """
    rtd = objective(size, dtype)
    optimizer = adam(rtd.model.train())

    def main(*arguments: Any) -> Tensor:
        with autocast(dtype):  # not around the frozen model, which is in `dtype` already, nor around the sampler
            logits: Tensor = rtd.model(*arguments)
            return logits

    def step(batch: TokenBatch) -> Tensor:
        loss, _ = rtd.loss(main, batch, TEMPERATURE)
        update(loss, rtd.model, optimizer)
        return loss.detach()

    return rtd, step


def engine(size: Sizes, dtype: torch.dtype) -> Step:
    """Return the step of a real run in one process, with ZeRO-2, DeepSpeed's fused Adam and its inference engine."""
    from fast_electra import deepspeed_config
    from fast_electra.training import engines
    from fast_electra.training.machine import this_machine

    operators.ensure()
    ranks = engines.start_ranks()
    name = next(name for name in DTYPES if DTYPES[name] == dtype)
    rtd = objective(size, torch.float32)
    assert isinstance(rtd.distribution, Auxiliary)
    frozen = rtd.distribution.model
    assert isinstance(frozen, MaskedLanguageModel)
    rtd.distribution.model = engines.inference_engine(frozen, name)
    tree = {
        "train_batch_size": size.batch,
        "gradient_clipping": CLIPPING,
        "optimizer": {"type": "Adam", "params": {**ADAM, "weight_decay": WEIGHT_DECAY}},
        "zero_optimization": {"stage": 2, "overlap_comm": True, "contiguous_gradients": True},
        "bf16": {"enabled": name == "bf16"},
    }
    config = deepspeed_config.resolve(tree, updates=1000, machine=this_machine(), where="benchmark")
    operators.choose_adam(config["optimizer"]["params"], ranks)
    deepspeed_engine = engines.training_engine(rtd.model, config)
    deepspeed_engine.train()

    def step(batch: TokenBatch) -> Tensor:
        loss, _ = rtd.loss(deepspeed_engine, batch, TEMPERATURE)
        deepspeed_engine.backward(loss)
        deepspeed_engine.step()
        return loss.detach()

    return step
