"""fast_electra's step for replaced-token detection, under plain PyTorch and under the DeepSpeed engine."""

import os
import socket
from typing import Any

import torch
from torch import Tensor

from contenders.common import (
    ADAM,
    CLIPPING,
    DEVICE,
    MASK_FRACTION,
    SEED,
    TEMPERATURE,
    WEIGHT_DECAY,
    Sizes,
    Step,
    adam,
    autocast,
    update,
)
from fast_electra.batch import TokenBatch
from fast_electra.corpus.tokenizer import Tokenizer
from fast_electra.curriculum import CurriculumSettings
from fast_electra.model.heads import Discriminator, MaskedLanguageModel
from fast_electra.objectives.rtd import RTD
from fast_electra.replacement.auxiliary import Auxiliary, Temperature
from fast_electra.training import operators
from fast_electra.training.precision import DTYPES


def objective(size: Sizes, dtype: torch.dtype) -> RTD:
    """Main model and frozen auxiliary. The latter is untrained, which costs a step what a trained one does."""
    frozen = MaskedLanguageModel(size.auxiliary, seed=1).requires_grad_(False).eval().to(DEVICE, dtype)
    noise: dict[str, Any] = {"seed": SEED, "mask_fraction": MASK_FRACTION, "mask_id": Tokenizer.mask_id}
    main = Discriminator(size.discriminator, seed=2).to(DEVICE)
    return RTD(main, Temperature(frozen, frozen), CurriculumSettings(), **noise)


def plain(size: Sizes, dtype: torch.dtype) -> tuple[RTD, Step]:
    """Frozen auxiliary, sampling, discriminator, the sums that metrics are made of, clipping, Adam."""
    rtd = objective(size, dtype)
    optimizer = adam(rtd.model.train())

    def step(batch: TokenBatch) -> Tensor:
        with autocast(dtype):
            loss, _ = rtd.loss(rtd.model, batch, TEMPERATURE)
        update(loss, rtd.model, optimizer)
        return loss.detach()

    return rtd, step


def engine(size: Sizes, dtype: torch.dtype) -> Step:
    """The same as a launch runs it, in one process: ZeRO-2, DeepSpeed's fused Adam and inference engine."""
    from fast_electra import deepspeed_config
    from fast_electra.training import engines

    with socket.socket() as listener:
        listener.bind(("", 0))
        os.environ.setdefault("MASTER_PORT", str(listener.getsockname()[1]))
    operators.ensure()
    engines.start_ranks()
    name = next(name for name in DTYPES if DTYPES[name] == dtype)
    rtd = objective(size, torch.float32)
    assert isinstance(rtd.distribution, Auxiliary)
    rtd.distribution.engine = engines.inference_engine(rtd.distribution.model, name)
    tree = {
        "train_batch_size": size.batch,
        "gradient_clipping": CLIPPING,
        "optimizer": {"type": "Adam", "params": {**ADAM, "weight_decay": WEIGHT_DECAY}},
        "zero_optimization": {"stage": 2, "overlap_comm": True, "contiguous_gradients": True},
        "bf16": {"enabled": name == "bf16"},
    }
    config = deepspeed_config.resolve(tree, 1000, deepspeed_config.Machine(), where="benchmark")
    deepspeed_engine = engines.training_engine(rtd.model, config)
    deepspeed_engine.train()

    def step(batch: TokenBatch) -> Tensor:
        loss, _ = rtd.loss(deepspeed_engine, batch, TEMPERATURE)
        deepspeed_engine.backward(loss)
        deepspeed_engine.step()
        return loss.detach()

    return step
