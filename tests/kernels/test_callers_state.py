"""Every public function gives the same bits whatever autocast or default dtype its caller has set."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from draws import DEVICE, keys, model
from torch import Tensor

import fast_electra_kernels as kernels
from fast_electra_kernels import IMPLEMENTATIONS, blocked, noise

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FUNCTIONS = {name: getattr(kernels, name) for name in kernels.__all__ if inspect.isfunction(getattr(kernels, name))}
FUNCTIONS |= {  # the other functions of `noise`, some of which fast_electra uses
    name: function
    for name, function in inspect.getmembers(noise, inspect.isfunction)
    if function.__module__ == noise.__name__ and not name.startswith("_")
}


class Arguments:
    """What the functions are called with: m positions and v tokens, whose products 16 bits cannot hold."""

    def __init__(self, m: int, v: int, dtype: torch.dtype, device: torch.device) -> None:
        self.m, self.v = m, v
        self.hidden, self.weight, bias = (tensor.to(device, dtype) for tensor in model(m, v, 16, 2.0))
        self.bias = bias.float()
        self.keys = keys(m).to(device)
        self.original = torch.arange(m, device=device) % v
        self.tokens = torch.arange(v, dtype=torch.int32, device=device)
        self.lines = ((self.hidden @ self.weight.T).float(), kernels.gumbel(self.keys, self.tokens))
        self.pieces = kernels.envelope(*self.lines, 0.3, 1.0)
        self.least = noise.group_least(self.keys, self.tokens)
        self.winner = noise.group_winner(self.keys, self.tokens)
        self.scaled = {"scale": 0.7, "prior_V": self.bias, "keys_M": self.keys}


# One call of every public function, which a new one must join; `impl` is for those that take one.
CALLS: dict[str, Callable[[Arguments, str], Any]] = {
    "concatenate": lambda a, _: kernels.concatenate([a.pieces, a.pieces]),
    "default_implementation": lambda a, _: kernels.default_implementation(a.hidden.device),
    "envelope": lambda a, _: kernels.envelope(*a.lines, 0.3, 1.0),
    "exponential": lambda a, _: noise.exponential(noise.random_bits(a.keys, a.tokens)),
    "group_least": lambda a, _: noise.group_least(a.keys, a.tokens),
    "group_winner": lambda a, _: noise.group_winner(a.keys, a.tokens),
    "gumbel": lambda a, _: (kernels.gumbel(a.keys, a.tokens), kernels.gumbel(a.keys, a.tokens, torch.float64)),
    "logits": lambda a, _: (kernels.logits(a.hidden, a.weight, a.bias), kernels.logits(a.hidden, a.weight, None)),
    "random_bits": lambda a, _: noise.random_bits(a.keys, a.tokens),
    "row_blocks": lambda a, _: list(kernels.row_blocks(a.m, a.v, False)),
    "sample": lambda a, impl: kernels.sample(a.hidden, a.weight, a.bias, **a.scaled, impl=impl),
    "sample_logits": lambda a, _: kernels.sample_logits(a.lines[0].to(a.hidden.dtype), a.keys, a.original),
    "sample_with_statistics": lambda a, impl: kernels.sample_with_statistics(
        a.hidden, a.weight, a.bias, **a.scaled, original_M=a.original, impl=impl
    ),
    "token_exponentials": lambda a, _: noise.token_exponentials(a.keys, a.tokens, a.least, a.winner),
    "winners": lambda a, _: kernels.winners(a.pieces, 0.7),
    "workspace_bytes": lambda a, impl: kernels.workspace_bytes(a.m, a.v, impl, False),
}
CASES = [
    (name, impl)
    for name, function in FUNCTIONS.items()
    for impl in (IMPLEMENTATIONS if "impl" in inspect.signature(function).parameters else ("",))
]


def bits(result: Any) -> Any:
    """The result with every tensor as its dtype and bytes, so that == means equal bit for bit."""
    if isinstance(result, Tensor):
        return result.dtype, result.shape, result.cpu().view(torch.uint8).tolist()
    return [bits(part) for part in result] if isinstance(result, (tuple, list)) else result


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "impl"), CASES)
def test_the_same_bits_whatever_the_caller_has_set(
    name: str, impl: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`blocked` runs with and without bf16 instructions."""
    for instructions in (True, False) if (impl, dtype) == ("blocked", torch.bfloat16) else (False,):
        monkeypatch.setattr(blocked, "multiplies_bf16", lambda answer=instructions: answer)
        same_bits(name, impl, dtype)


def same_bits(name: str, impl: str, dtype: torch.dtype) -> None:
    for device in [DEVICE] if impl == "triton" else {CPU, DEVICE}:
        size = (4, 64) if impl == "triton" else (150, 300)  # small, because Triton's interpreter is slow
        arguments = Arguments(*size, dtype, device)
        expected = bits(CALLS[name](arguments, impl))
        for state in (
            torch.autocast(device.type, torch.bfloat16),
            torch.autocast(device.type, torch.float16),
            default_dtype(torch.bfloat16),
            default_dtype(torch.float64),
        ):
            with state:
                assert bits(CALLS[name](arguments, impl)) == expected
