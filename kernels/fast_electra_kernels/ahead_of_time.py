"""Compiles the Triton kernels for GPUs that are not there, and prints what they take of one.

    python -m fast_electra_kernels.ahead_of_time [--arch 80 90] [--dtype bf16 ...] [--hidden 768 ...] [--json FILE]

Exits with 1 where registers are spilled to memory: so a change that costs speed is seen on a machine without a GPU.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fast_electra_kernels import triton_sampler
from fast_electra_kernels.triton_sampler import DRAW_OPTIONS, GROUPS, MARGIN, tiles
from fast_electra_kernels.workspace import SPAN

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes that a block may have


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--arch", type=int, nargs="+", choices=SHARED, default=list(SHARED))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 768, 1024], metavar="D")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    rows = []
    print(f"triton {triton.__version__}\n{'kernel':<8}{'arch':>7}{'dtype':>7}{'D':>6}  ", end="")
    print(f"{'registers':>10}{'spilled bytes':>15}{'shared bytes':>14}{'wgmma':>7}")
    for arch in arguments.arch:
        for dtype in arguments.dtype:
            for d in arguments.hidden:
                for row in compiled(arch, dtype, d):
                    rows.append(row)
                    print(
                        f"{row['kernel']:<8}{'sm_' + str(arch):>7}{dtype:>7}{d:>6}  {row['registers']:>10}"
                        f"{row['spilled_bytes']:>15}{row['shared_bytes']:>14}{row['wgmma']:>7}",
                        flush=True,
                    )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    if bad := [row for row in rows if row["spilled_bytes"] or row["shared_bytes"] > SHARED[row["arch"]]]:
        sys.exit(f"error: {len(bad)} of {len(rows)} kernels spill registers or need more shared memory than there is")


def compiled(arch: int, dtype: str, d: int) -> Iterator[dict[str, Any]]:
    """Both kernels, as `sample` would call them with hidden states of size d."""
    shape = tiles(DTYPES[dtype], arch >= 90)
    common = {"hidden": f"*{dtype}", "weight": f"*{dtype}", "added": "*fp32", "highest": "*i16", "sums": "*fp32"}
    common |= {"scale": "fp32", "M": "i32", "V": "i32", "spans": "i32", "chunks": "i32"}
    scan = common | {"each": "i32"}
    constants: dict[str, Any] = {
        "D": d,
        "BM": shape.rows,
        "BN": shape.tokens,
        "BK": shape.features,
        "SPAN": SPAN,
        "WIDEN": False,
    }
    options = {"num_warps": shape.warps, "num_stages": shape.stages}
    yield _row("scan", arch, dtype, d, triton_sampler._scan, scan, constants, options)
    draw = common | {"keys": "*i64", "original": "*i64", "ids": "*i64", "sound": "*i1", "figures": "*fp32"}
    constants = {"D": d, "D_PADDED": triton.next_power_of_2(d), "CHUNKS": 16, "SPAN": SPAN, "GROUPS": GROUPS}
    constants |= {"MARGIN": MARGIN, "ROWS": 1, "ORIGINAL": True}
    yield _row("draw", arch, dtype, d, triton_sampler._draw, draw, constants, DRAW_OPTIONS)


def _row(
    kernel: str, arch: int, dtype: str, d: int, function: Any, arguments: Any, constants: Any, options: Any
) -> dict[str, Any]:
    names = function.arg_names
    signature = {name: "constexpr" if name in constants else arguments[name] for name in names}
    # Addresses are multiples of 16, as torch gives them; of numbers no special case is compiled.
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    source = ASTSource(function, signature, constexprs=constants, attrs=aligned)
    result = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    report = _assembled(result.asm["ptx"])
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


def _assembled(ptx: str) -> str:
    """What the assembler that comes with Triton says of registers and spills."""
    target = re.search(r"\.target (\S+)", ptx)
    assert target
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [str(assembler), "-v", f"--gpu-name={target[1]}", file.name, "-o", "/dev/null"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stderr


if __name__ == "__main__":
    main()
