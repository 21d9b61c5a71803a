"""First contact with a machine, in seconds: versions, toolchain, communication, and Adam. `gpu.sh` runs it early."""

import importlib.metadata
import os
import sys

import torch

from fast_electra.hosts import operators, toolchain
from fast_electra.training import engines, machine, nvidia_apex

PACKAGES = ("torch", "triton", "deepspeed", "megatron-core", "pydantic", "numpy", "transformers", "filelock")
NORM_TOLERANCE = 0.05  # numbers of about 1 to 4 in bf16
PARAMETERS, STEPS, TOLERANCE = 1_000_003, 5, 1e-5  # the number is odd on purpose; an update changes weights by 1e-3


def main() -> None:
    print(", ".join(f"{name} {version(name)}" for name in PACKAGES))
    variables = ("CUDA_VISIBLE_DEVICES", "CUDA_HOME", "CPATH", "CPLUS_INCLUDE_PATH")
    problems = "; ".join(toolchain.toolchain_problems()) or "none"  # the call also sets variables
    cpu = f"{machine.cpu_name()}, {os.cpu_count()} cores"
    print(f"python {sys.version.split()[0]}, {cpu}, auto means {machine.best_dtype()}")
    print(f"toolchain problems: {problems}", {name: os.environ.get(name) for name in variables}, flush=True)
    ranks = engines.start_ranks()
    device = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else machine.cpu_name()
    print(f"{ranks} on {device}", flush=True)
    assert engines.sum_over_ranks(torch.ones(3, device=ranks.device)).tolist() == [ranks.world] * 3
    params: dict[str, object] = {}
    operators.choose_adam(params, ranks)
    if params:
        print("runs use torch's Adam")
    else:
        from deepspeed.ops.adam import FusedAdam

        difference = adam_difference(FusedAdam, ranks.device)
        print(f"DeepSpeed's fused Adam differs from torch's by {difference:.1e} after {STEPS} steps")
        assert difference < TOLERANCE
    folder, problem = nvidia_apex.find()
    if folder is None or ranks.device.type == "cpu":
        print(f"apex is not checked: {problem or 'it needs a GPU'}")
    else:
        fused_norm, fused_adam = nvidia_apex.load()
        difference, of_norms = adam_difference(fused_adam, ranks.device), norm_difference(fused_norm, ranks.device)
        print(f"apex in {folder} differs from torch by {difference:.1e} (Adam) and {of_norms:.1e} (norms in bf16)")
        assert difference < TOLERANCE and of_norms < NORM_TOLERANCE
    engines.stop_ranks()
    print("smoke passed")


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "MISSING"


def adam_difference(fused_adam: type[torch.optim.Optimizer], device: torch.device) -> float:
    """Return the largest difference between weights that it and torch's Adam trained with the same gradients."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(PARAMETERS, generator=generator).to(device)
    weights = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    options = {"lr": 1e-3, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.01}
    optimizers = fused_adam(weights[:1], **options), torch.optim.AdamW(weights[1:], **options)
    for _ in range(STEPS):
        gradient = torch.randn(PARAMETERS, generator=generator).to(device)
        for weight, optimizer in zip(weights, optimizers, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    return float((weights[0] - weights[1]).detach().abs().max())


def norm_difference(fused_norm: type[torch.nn.Module], device: torch.device) -> float:
    """Return the largest difference between results and gradients of it and of torch's LayerNorm, in bf16."""
    torch.manual_seed(0)
    given = torch.randn(1000, 768, device=device, dtype=torch.bfloat16)
    found = []
    for norm in (torch.nn.LayerNorm(768), fused_norm(768)):
        x = given.clone().requires_grad_()
        y = norm.to(device, torch.bfloat16)(x)
        y.square().mean().mul(768).backward()
        found.append(torch.cat([y.detach().flatten(), x.grad.flatten(), norm.weight.grad / 768]).float())
    return float((found[0] - found[1]).abs().max())


if __name__ == "__main__":
    main()
