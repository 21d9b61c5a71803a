"""Peak rates, memory and prices of common GPUs, for the hours and dollars of an estimate."""

from typing import NamedTuple

from fast_electra.settings import UserError


class GPU(NamedTuple):
    """What a maker's data sheet says of one GPU, and what an hour of it may cost.

    `flops_16` is the dense peak of matrix products in `dtype` with sums in fp32, `flops_32` that of fp32 products as
    torch computes them by default (no TF32), both in FLOP/s. `gigabytes` is the nominal memory. The dollars are an
    ASSUMPTION, of on-demand rent in 2026: prices differ by provider, place and month.
    """

    flops_16: float
    flops_32: float
    dtype: str
    gigabytes: float
    dollars_per_hour: float


PRICE_YEAR = 2026
GPUS = {
    "v100": GPU(125e12, 15.7e12, "fp16", 32, 0.50),  # SXM2
    "rtx3090": GPU(71e12, 35.6e12, "bf16", 24, 0.30),
    "rtx4090": GPU(165.2e12, 82.6e12, "bf16", 24, 0.45),
    "a100": GPU(312e12, 19.5e12, "bf16", 80, 1.50),  # SXM
    "h100": GPU(989.4e12, 66.9e12, "bf16", 80, 2.50),  # SXM
    "h200": GPU(989.4e12, 66.9e12, "bf16", 141, 3.50),  # SXM
}


def named_gpu(name: str) -> GPU:
    """The GPU of that name.

    Raises:
        UserError: there is none.
    """
    if name.lower() not in GPUS:
        raise UserError(f"--gpu {name}: the peak of that GPU is not known here; name one of {', '.join(GPUS)}")
    return GPUS[name.lower()]
