import torch


class FusedAdam(torch.optim.Optimizer):
    """The number of steps is in the group, the moments in the state, as in apex."""

    def __init__(
        self, params, lr=1e-3, bias_correction=True, betas=(0.9, 0.999), eps=1e-8, adam_w_mode=True,
        weight_decay=0.0, amsgrad=False, set_grad_none=True, capturable=False, master_weights=False,
    ):  # fmt: skip
        if amsgrad:
            raise RuntimeError("FusedAdam has no AMSGrad")
        defaults = {"lr": lr, "bias_correction": bias_correction, "betas": betas, "eps": eps}
        super().__init__(params, defaults | {"weight_decay": weight_decay})
        self.adam_w_mode = 1 if adam_w_mode else 0

    @torch.no_grad()
    def step(self, closure=None, grads=None, output_params=None, scale=None, grad_norms=None, grad_scaler=None):
        assert all(given is None for given in (grads, output_params, scale, grad_norms, grad_scaler))
        for group in self.param_groups:
            group["step"] = group["step"] + 1 if "step" in group else 1
            (beta1, beta2), step = group["betas"], group["step"]
            corrections = (1 - beta1**step, 1 - beta2**step) if group["bias_correction"] else (1.0, 1.0)
            for p in (p for p in group["params"] if p.grad is not None):
                state, gradient = self.state[p], p.grad
                if len(state) == 0:
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p).float(), torch.zeros_like(p).float()
                if not self.adam_w_mode:
                    gradient = gradient + group["weight_decay"] * p
                mean, square = state["exp_avg"], state["exp_avg_sq"]
                mean.mul_(beta1).add_(gradient, alpha=1 - beta1)
                square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                change = (mean / corrections[0]) / ((square / corrections[1]).sqrt() + group["eps"])
                if self.adam_w_mode:
                    change = change + group["weight_decay"] * p
                p.sub_(change, alpha=group["lr"])
