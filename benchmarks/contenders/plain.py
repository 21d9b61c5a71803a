"""A training step in plain PyTorch, with DeepSpeed's recipe for 16-bit models: fp32 weights, gradients and Adam."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from contenders.common import ADAM, CLIPPING, WEIGHT_DECAY
from fast_electra.batch import Draws, MaskedBatch
from fast_electra.training.optimizer import parameter_groups


class Plain:
    """What DeepSpeed's engine does in one process: `backward` adds gradients up in fp32, `step` updates the weights."""

    def __init__(self, model: nn.Module, accumulation: int) -> None:
        """Copy a 16-bit model's weights in fp32; an update is due after `accumulation` calls of `step`."""
        groups = parameter_groups(model, WEIGHT_DECAY)
        self.weights: list[Tensor] = [weight for group in groups for weight in group["params"]]
        self.copied = self.weights[0].dtype != torch.float32
        for group in groups if self.copied else ():
            group["params"] = [weight.detach().float() for weight in group["params"]]
        self.copies: list[Tensor] = [copy for group in groups for copy in group["params"]]
        self.optimizer = torch.optim.AdamW(groups, **ADAM, fused=True)
        self.accumulation, self.steps = accumulation, 0

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of the loss up in fp32."""
        loss.backward()
        for weight, copy in zip(self.weights, self.copies, strict=True) if self.copied else ():
            assert weight.grad is not None
            copy.grad = weight.grad.float() if copy.grad is None else copy.grad.add_(weight.grad)
            weight.grad = None

    def step(self) -> None:
        """Clip and update, if this is the last micro-batch of an update."""
        self.steps += 1
        if self.steps % self.accumulation:
            return
        nn.utils.clip_grad_norm_(self.copies, CLIPPING)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.copied:
            with torch.no_grad():
                torch._foreach_copy_(self.weights, self.copies)


class Drawn:
    """Draws that are there already, as those of an offline store are: one set for each micro-batch, in turns."""

    parameter, floor = "temperature", 1.0

    def __init__(self, draws: list[Draws]) -> None:
        """Keep the draws."""
        self.draws, self.calls = draws, 0

    def sample(self, masked: MaskedBatch, strength: float) -> Draws:
        """Return the next draws."""
        self.calls += 1
        return self.draws[(self.calls - 1) % len(self.draws)]


Update = Callable[[], Tensor]  # one update of the weights; returns the loss
