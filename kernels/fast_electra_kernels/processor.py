"""What this machine's CPU can do."""

import torch


def multiplies_bf16() -> bool:
    """Return whether the CPU has instructions for products of bfloat16 numbers, and PyTorch uses them.

    Without them, such products are many times slower than products in float32.
    """
    avx512 = "AVX512" in torch.backends.cpu.get_cpu_capability() and torch.cpu._is_avx512_bf16_supported()
    return avx512 or torch.cpu._is_amx_tile_supported()
