"""First contact with a machine, in seconds: versions, toolchain, communication, and Adam. `gpu.sh` runs it early."""

import importlib.metadata
import os
import sys

import torch

from fast_electra.hosts import operators, toolchain
from fast_electra.training import engines, machine

PACKAGES = ("torch", "triton", "deepspeed", "megatron-core", "pydantic", "numpy", "transformers", "filelock")
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
        difference = adam_difference(ranks.device)
        print(f"DeepSpeed's fused Adam differs from torch's by {difference:.1e} after {STEPS} steps")
        assert difference < TOLERANCE
    engines.stop_ranks()
    print("smoke passed")


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "MISSING"


def adam_difference(device: torch.device) -> float:
    """Return the largest difference between weights that the two optimizers trained with the same gradients."""
    from deepspeed.ops.adam import FusedAdam

    generator = torch.Generator().manual_seed(0)
    start = torch.randn(PARAMETERS, generator=generator).to(device)
    weights = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    options = {"lr": 1e-3, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.01}
    optimizers = FusedAdam(weights[:1], **options), torch.optim.AdamW(weights[1:], **options)
    for _ in range(STEPS):
        gradient = torch.randn(PARAMETERS, generator=generator).to(device)
        for weight, optimizer in zip(weights, optimizers, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    return float((weights[0] - weights[1]).detach().abs().max())


if __name__ == "__main__":
    main()
