"""AdaMax, and what any optimizer of a training engine gets: parameters in groups, in one process gradients at once."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

# Tables of relative positions: ours, those of MPNet, LayoutLMv3 and T5, and those of DeBERTa.
RELATIVE = ("relative_bias", "relative_attention_bias", "rel_pos_bias", "rel_embeddings")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two parameter groups: matrices decay; biases, norms, Admin's scales and the relative bias do not.

    Frozen parameters are in neither.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decays = [p.dim() > 1 and not any(part in name for part in RELATIVE) for name, p in trained]
    decayed = [p for (_, p), does in zip(trained, decays, strict=True) if does]
    others = [p for (_, p), does in zip(trained, decays, strict=True) if not does]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


class DecoupledAdamax(torch.optim.Adamax):
    """AdaMax whose weight decay does not pass through the gradient (Loshchilov and Hutter, 2019), as in MT-DNN (C.1).

    PyTorch's adds the decay to the gradient. AdaMax divides a gradient by its own size. So a weight whose gradient is
    0, such as the embedding of a token that does not occur, would go to 0 by a whole learning rate at each update.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Shrink each weight by lr * weight_decay of itself, then do as AdaMax does."""
        decays = [group["weight_decay"] for group in self.param_groups]
        for group, decay in zip(self.param_groups, decays, strict=True):
            if weights := [p for p in group["params"] if p.grad is not None]:
                torch._foreach_mul_(weights, 1 - group["lr"] * decay)
            group["weight_decay"] = 0.0
        try:
            return super().step(closure)
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay


def spare_reduction(optimizer: Any) -> None:
    """Let a ZeRO-2 optimizer of one process take its gradients at the end of each backward pass, as one list.

    DeepSpeed itself copies each gradient into a bucket by a hook, reduces the bucket, copies it back, and adds it up.
    The sums are the same to the bit.
    """
    for hook in optimizer._grad_acc_hooks:
        hook.remove()
    optimizer._grad_acc_hooks.clear()

    build = cache(optimizer._build_compact_grad_partition_buffer)  # new memory would cost more than adding up in it

    @torch.no_grad()
    def add_up() -> None:
        for group, parameters in enumerate(optimizer.params_in_partition):
            first = optimizer.averaged_gradients.get(group) is None
            if first:
                optimizer.averaged_gradients[group] = build(group)
            buffers = _of_parameters(optimizer.averaged_gradients[group])
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            (torch._foreach_copy_ if first else torch._foreach_add_)(buffers, gradients)
            for parameter in parameters:
                parameter.grad = None

    optimizer.overlapping_partition_gradients_reduce_epilogue = add_up
    optimizer.get_grad_norm_direct = _norm


def _norm(gradients: list[Tensor], parameters: list[Tensor]) -> Tensor:
    """Return the norm of one group, added up in fp64 as DeepSpeed does, but by one call. It may be infinite or NaN."""
    norms = torch._foreach_norm(_of_parameters(gradients), 2, dtype=torch.float64)
    return torch.stack(norms).square().sum().float().sqrt()


def _of_parameters(parts: list[Tensor]) -> list[Tensor]:
    """Return the parts of a flat buffer that belong to parameters, in their order: all but its padding."""
    return [part for part in parts if not getattr(part, "_zero_padding", False)]
