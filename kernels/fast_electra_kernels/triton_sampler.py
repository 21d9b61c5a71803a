"""`sample` in two Triton kernels: one product with the vocabulary head, whose logits never leave the registers.

`_scan` multiplies tiles of hidden states and of the head on the tensor cores. From each tile of scores it keeps, for
every row, the highest score of each SPAN neighbouring tokens (16 bits, rounded up) and running sums for log-sum-exp
and entropy. It uses no random numbers, so its cost is that of the bare product plus a small epilogue.

`_draw`, in `triton_draw.py`, then searches each row for the token with the highest sum of score and noise.
"""

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from fast_electra_kernels.contract import Request, SampleResult, Statistics
from fast_electra_kernels.triton_draw import LEAST_EXPONENT, Search, _draw, default_search
from fast_electra_kernels.workspace import SPAN, most_chunks, spans_in_memory

_LOG2_E = tl.constexpr(1.4426950408889634)


class Tiles(NamedTuple):
    """Shape of the product's tiles, and compiler options."""

    rows: int
    tokens: int
    features: int
    stages: int
    warps: int
    resident: int = 1  # programs that fit on a multiprocessor at a time


# For Triton's interpreter on a CPU, which takes as long for a small array as for a large one.
INTERPRETED = Tiles(256, 1024, 64, 1, 4)
INTERPRETED_ROWS = 4096  # the most rows of a program of `_draw`, which has one row on a GPU


def tiles(dtype: torch.dtype, capability: tuple[int, int]) -> Tiles:
    """Return the tiles for a GPU of that compute capability; `benchmarks/sampler.py --tune` tries others."""
    # The large tiles need 145 KiB of shared memory, which only 9.x and 10.x have; 8.6, 8.9 and 12.0 have 99 KiB.
    if dtype == torch.float32:
        return Tiles(64, 64, 32, 2, 4)
    return Tiles(128, 256, 64, 3, 8) if capability[0] in (9, 10) else Tiles(128, 128, 64, 3, 8)


def sample(request: Request, shape: Tiles | None = None, search: Search | None = None) -> SampleResult:
    """Run both kernels; `shape` replaces the tiles that are chosen by default, and `search` the way to draw."""
    hidden_MD, weight_VD, bias_V, scale, prior_V, keys_M, original_M = request
    (m, d), v, device = hidden_MD.shape, len(weight_VD), hidden_MD.device
    ids_M = torch.empty(m, dtype=torch.int64, device=device)
    valid_M = torch.empty(m, dtype=torch.bool, device=device)
    statistics_3M = torch.empty(3, m, dtype=torch.float32, device=device)
    if m:
        search = search or default_search(hidden_MD.dtype)
        added_V = torch.zeros(v, dtype=torch.float32, device=device) if bias_V is None else bias_V.float() * scale
        if prior_V is not None:
            added_V += prior_V
        if hidden_MD.is_cuda:
            properties = torch.cuda.get_device_properties(device)
            shape = shape or tiles(hidden_MD.dtype, (properties.major, properties.minor))
            processors, rows_of_draw = properties.multi_processor_count * shape.resident, 1
        else:
            shape, processors = shape or INTERPRETED, 1
            rows_of_draw = min(triton.next_power_of_2(m), INTERPRETED_ROWS)
        row_blocks, all_tiles = triton.cdiv(m, shape.rows), triton.cdiv(v, shape.tokens)
        each = _tiles_of_program(row_blocks, all_tiles, processors)
        chunks = triton.cdiv(all_tiles, each)
        highest_MS = torch.empty(m, spans_in_memory(v), dtype=torch.int16, device=device)
        sums_3MC = torch.empty(3, m, chunks, dtype=torch.float32, device=device)
        _scan[row_blocks, chunks](
            hidden_MD, weight_VD, added_V, highest_MS, sums_3MC, float(scale), m, v, highest_MS.shape[1], each, chunks,
            D=d, BM=shape.rows, BN=shape.tokens, BK=shape.features, SPAN=SPAN,
            WIDEN=not hidden_MD.is_cuda, num_warps=shape.warps, num_stages=shape.stages,
        )  # fmt: skip
        _draw[(triton.cdiv(m, rows_of_draw),)](
            hidden_MD, weight_VD, added_V, highest_MS, sums_3MC, keys_M, keys_M if original_M is None else original_M,
            ids_M, valid_M, statistics_3M, float(scale), m, v, highest_MS.shape[1], chunks,
            D=d, FEATURES=min(triton.next_power_of_2(d), search.slots), CHUNKS=max(16, triton.next_power_of_2(chunks)),
            SPAN=SPAN, PARTS=search.parts, SLOTS=search.slots, LOADS=search.loads, ROWS=rows_of_draw,
            ORIGINAL=original_M is not None,
            num_warps=search.warps, maxnreg=search.registers,
        )  # fmt: skip
    return SampleResult(ids_M, valid_M, None if original_M is None else Statistics(*statistics_3M))


@cache
def _tiles_of_program(row_blocks: int, all_tiles: int, processors: int) -> int:
    """Return how many tiles each program of `_scan` computes, chosen so that few processors idle in the last wave."""

    def waste(each: int) -> float:
        programs = row_blocks * triton.cdiv(all_tiles, each)
        waves = triton.cdiv(programs, processors)
        return waves * each * processors / (row_blocks * all_tiles)

    return min(range(triton.cdiv(all_tiles, most_chunks(row_blocks, processors)), all_tiles + 1), key=waste)


# Arguments for which Triton compiles no special cases, because they differ from batch to batch.
_NUMBERS = ["M", "V", "spans", "chunks", "each"]


@triton.jit(do_not_specialize=_NUMBERS)
def _scan(
    hidden, weight, added, highest, sums, scale, M, V, spans, each, chunks,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPAN: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Compute BM rows and `each` tiles of BN tokens; store highest scores [M, spans] and sums [3, M, chunks]."""
    chunk = tl.program_id(1)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    rows_64 = tl.minimum(rows, M - 1).to(tl.int64)
    features = tl.arange(0, BK)
    hidden_at = hidden + rows_64[:, None] * D + features[None, :]
    top = tl.full([BM], -float("inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)  # of exp(score - top)
    moment = tl.zeros([BM], tl.float32)  # of exp(score - top) * (score - top), in bits
    # Flattened with the loop over features, so that the next tile is loaded during this one's epilogue.
    for tile in tl.range(chunk * each, min((chunk + 1) * each, tl.cdiv(V, BN)), flatten=True):
        tokens = tile * BN + tl.arange(0, BN)
        tokens_64 = tl.minimum(tokens, V - 1).to(tl.int64)
        weight_at = weight + tokens_64[None, :] * D + features[:, None]
        product = tl.zeros([BM, BN], tl.float32)
        for k in range(0, D, BK):
            if D % BK == 0:
                a = tl.load(hidden_at + k)
                b = tl.load(weight_at + k)
            else:
                a = tl.load(hidden_at + k, mask=features[None, :] < D - k, other=0.0)
                b = tl.load(weight_at + k, mask=features[:, None] < D - k, other=0.0)
            if WIDEN:
                a, b = a.to(tl.float32), b.to(tl.float32)
            product = tl.dot(a, b, product, input_precision="ieee")
        scores = product * scale + tl.load(added + tokens, mask=tokens < V, other=-float("inf"))[None, :]

        high = tl.max(tl.reshape(scores, [BM, BN // SPAN, SPAN]), 2)
        bits = high.to(tl.int32, bitcast=True)
        bits += tl.where(bits >= 0, 0xFFFF, 0)  # then cutting rounds up; negative numbers do so anyway
        span = tile * (BN // SPAN) + tl.arange(0, BN // SPAN)
        high_at = highest + rows_64[:, None] * spans + span[None, :]
        tl.store(high_at, (bits >> 16).to(tl.int16), mask=(rows < M)[:, None] & (span < spans)[None, :])

        new_top = tl.maximum(top, tl.max(high, 1))
        base = tl.where(new_top == -float("inf"), 0.0, new_top)
        change = tl.where(top == -float("inf"), 0.0, top - base) * _LOG2_E
        shifted = (scores - base[:, None]) * _LOG2_E
        weights = tl.exp2(shifted)  # NaN stays NaN here, while the maxima above may skip it
        kept = tl.exp2(change)
        moment = kept * (moment + change * total) + tl.sum(weights * tl.maximum(shifted, LEAST_EXPONENT), 1)
        total = kept * total + tl.sum(weights, 1)
        top = new_top
    sums_at = sums + rows_64 * chunks + chunk
    size = M.to(tl.int64) * chunks
    tl.store(sums_at, top, mask=rows < M)
    tl.store(sums_at + size, total, mask=rows < M)
    tl.store(sums_at + 2 * size, moment / _LOG2_E, mask=rows < M)
