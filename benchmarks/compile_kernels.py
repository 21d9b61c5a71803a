"""Compile the Triton kernels without a GPU, and print the registers and shared memory that they need.

    python benchmarks/compile_kernels.py [--arch 80 90 ...] [--dtype bf16 ...] [--hidden 768 ...] [--head 64 ...]
        [--json FILE]

`--hidden` is for the sampler, and `--head`, the size of a head, for attention. Either may be an empty list.

The exit code is 1 if a kernel spills registers to memory or needs more shared memory than the GPU has. A change that
makes a kernel slow or impossible to launch is thus seen on a machine without a GPU.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.compiler import ASTSource

from fast_electra_kernels import attention_kernels, triton_attention, triton_sampler
from fast_electra_kernels.triton_draw import default_search
from fast_electra_kernels.triton_sampler import tiles
from fast_electra_kernels.workspace import SPAN

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Bytes of shared memory that a block may have, by architecture.
SHARED = {arch: kib * 1024 for arch, kib in {80: 163, 89: 99, 90: 227, 100: 227, 120: 99}.items()}
IN_FULL = (80, 90)  # compiled in all cases by default; the others only for the paper's base model
BASE = (("bf16", 768), ("bf16", 64))


def main() -> None:
    """Compile, print a row for each kernel, and exit with 1 if one does not fit its GPU."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--arch", type=int, nargs="+", choices=SHARED, help="default: 80, 90, one case of each other")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--hidden", type=int, nargs="*", default=[128, 768, 1024], metavar="D")
    parser.add_argument("--head", type=int, nargs="*", default=[32, 64, 128], metavar="D")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    rows = []
    print(f"triton {triton.__version__}\n{'kernel':<17}{'arch':>7}{'dtype':>7}{'D':>6}  ", end="")
    print(f"{'registers':>10}{'spilled bytes':>15}{'shared bytes':>14}{'wgmma':>7}")
    cases = [(sampler, d) for d in arguments.hidden] + [(attention, d) for d in arguments.head]
    for arch, dtype, (compiled, d) in product(arguments.arch or SHARED, arguments.dtype, cases):
        # Attention in fp32 with heads of 128 spills; no configuration uses it.
        if (arguments.arch or arch in IN_FULL or (dtype, d) in BASE) and (compiled, dtype, d) != (
            attention,
            "fp32",
            128,
        ):
            for row in compiled(arch, dtype, d):
                rows.append(row)
                print(
                    f"{row['kernel']:<17}{'sm_' + str(arch):>7}{dtype:>7}{d:>6}  {row['registers']:>10}"
                    f"{row['spilled_bytes']:>15}{row['shared_bytes']:>14}{row['wgmma']:>7}",
                    flush=True,
                )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    if bad := [row for row in rows if row["spilled_bytes"] or row["shared_bytes"] > SHARED[row["arch"]]]:
        sys.exit(f"error: {len(bad)} of {len(rows)} kernels spill registers or exceed the GPU's shared memory")


def sampler(arch: int, dtype: str, d: int) -> Iterator[dict[str, Any]]:
    """Compile both kernels as `sample` would call them with hidden states of size d, and yield a row for each."""
    shape = tiles(DTYPES[dtype], divmod(arch, 10))
    common = {"hidden": f"*{dtype}", "weight": f"*{dtype}", "added": "*fp32", "highest": "*i16", "sums": "*fp32"}
    common |= {"scale": "fp32", "M": "i32", "V": "i32", "spans": "i32", "chunks": "i32"}
    scan = common | {"each": "i32"}
    constants: dict[str, Any] = {"D": d, "BM": shape.rows, "BN": shape.tokens, "BK": shape.features}
    constants |= {"SPAN": SPAN, "WIDEN": False}
    options = {"num_warps": shape.warps, "num_stages": shape.stages}
    yield _row("scan", arch, dtype, d, triton_sampler._scan, scan, constants, options)
    draw = common | {"keys": "*i64", "original": "*i64", "ids": "*i64", "valid": "*i1", "statistics": "*fp32"}
    search = default_search(DTYPES[dtype])
    features = min(triton.next_power_of_2(d), search.slots)
    constants = {"D": d, "FEATURES": features, "CHUNKS": 16, "SPAN": SPAN, "PARTS": search.parts}
    constants |= {"SLOTS": search.slots, "LOADS": search.loads, "ROWS": 1, "ORIGINAL": True}
    options = {"num_warps": search.warps, "maxnreg": search.registers}
    yield _row("draw", arch, dtype, d, triton_sampler._draw, draw, constants, options)


def attention(arch: int, dtype: str, d: int) -> Iterator[dict[str, Any]]:
    """Compile the large kernels of attention with heads of size d and dropout, and yield a row for each."""
    plan = triton_attention.plan(DTYPES[dtype], d, divmod(arch, 10))
    kinds = dict.fromkeys(("q", "k", "v", "out", "grad", "grad_q", "grad_k", "grad_v"), f"*{dtype}")
    kinds |= dict.fromkeys(("bias", "lse", "delta", "sums"), "*fp32")
    kinds |= dict.fromkeys(("words", "starts", "lengths", "order"), "*i32")
    kinds |= dict.fromkeys(("scale", "keep_scale", "softmax_scale"), "fp32")
    for name, shape in (
        ("forward", plan.forward), ("backward_queries", plan.queries), ("backward_keys", plan.keys),
        ("backward_bias", plan.bias),
    ):  # fmt: skip
        function = getattr(attention_kernels, name)
        constants = {"H": 12, "D": d, "BM": shape.queries, "BN": shape.keys, "DROPOUT": True, "WIDEN": False}
        constants = {key: value for key, value in constants.items() if key in function.arg_names}
        options = {"num_warps": shape.warps, "num_stages": shape.stages}
        options |= {"maxnreg": shape.registers} if shape.registers else {}
        arguments = {key: kinds.get(key, "i32") for key in function.arg_names}
        yield _row(name, arch, dtype, d, function, arguments, constants, options)


def _row(
    kernel: str, arch: int, dtype: str, d: int, function: Any, arguments: Any, constants: Any, options: Any
) -> dict[str, Any]:
    names = function.arg_names
    signature = {name: "constexpr" if name in constants else arguments[name] for name in names}
    # Addresses are multiples of 16, as torch allocates them, and so are strides. Other numbers are not specialised.
    multiples = [
        name for name in names if signature[name].startswith("*") or name[1:] in ("_t", "_h") or name == "padded"
    ]
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in multiples}
    source = ASTSource(function, signature, constexprs=constants, attrs=aligned)
    result = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    report = _assemble(result.asm["ptx"], arch)
    spills = re.findall(r"(\d+) bytes spill", report)
    registers = re.search(r"Used (\d+) registers", report)
    assert registers, report
    return {
        "kernel": kernel,
        "arch": arch,
        "dtype": dtype,
        "hidden_size": d,
        **options,
        "registers": int(registers[1]),
        "spilled_bytes": sum(map(int, spills)),
        "shared_bytes": result.metadata.shared,
        "wgmma": "yes" if "wgmma" in result.asm["ptx"] else "no",
    }


def _assemble(ptx: str, arch: int) -> str:
    """Return the report of Triton's assembler on registers and spills."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        target = f"--gpu-name={sm_arch_from_capability(arch)}"
        command = [get_ptxas(arch).path, "-v", target, file.name, "-o", "/dev/null"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stderr


if __name__ == "__main__":
    main()
