"""Which number format is fastest and right on this machine's device."""

import torch

from fast_electra.settings import UserError
from fast_electra.training.operators import on_gpu

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def best_dtype() -> str:
    """bf16 where the device multiplies matrices in it, fp16 on older GPUs, fp32 on other CPUs.

    A CPU without bf16 instructions computes bf16 products many times slower than fp32 ones.
    """
    if on_gpu():
        return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    capability = torch.backends.cpu.get_cpu_capability()
    has_bf16 = "AVX512" in capability and torch.cpu._is_avx512_bf16_supported()
    return "bf16" if has_bf16 or torch.cpu._is_amx_tile_supported() else "fp32"


def resolve_dtype(name: str, where: str) -> str:
    """`name`, with `auto` replaced by the best one; a UserError for what the device cannot do."""
    resolved = best_dtype() if name == "auto" else name
    if resolved == "fp16" and not on_gpu():
        raise UserError(f"{where}: fp16 needs a GPU; use bf16, fp32 or auto")
    return resolved
