"""`sample` in two Triton kernels: one product with the vocabulary head, whose logits never leave the registers.

`_scan` multiplies tiles of hidden states and of the head on the tensor cores. From each tile of scores it keeps, for
every row, the highest score of each SPAN neighbouring tokens (16 bits, rounded up) and running sums for log-sum-exp
and entropy. It uses no random numbers, so its cost is that of the bare product plus a small epilogue.

`_draw` has one program for each row. The winner's perturbed score is the log-sum-exp plus Gumbel noise, so it is rarely
below `floor`, the log-sum-exp minus 1. A group of tokens can hold the winner only if its bound, from its highest score
and its smallest exponential (see `noise`), is above both `floor` and the best token so far. The kernel recomputes
the scores of the few tokens that pass, one at a time. If the best one is below `floor`, it searches the row again with
a lower floor. So the draw is exact.
"""

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from fast_electra_kernels import noise
from fast_electra_kernels.contract import Request, SampleResult, Statistics
from fast_electra_kernels.workspace import SPAN, most_chunks

MARGIN = 1.0  # from `floor` up to the log-sum-exp: 6.6% of the rows are searched twice, the others compute fewer scores

_GROUP = tl.constexpr(noise.GROUP)
_STEP = tl.constexpr(noise.STEP & 0xFFFFFFFF)
_MULTIPLY_1 = tl.constexpr(noise.MULTIPLY_1)
_MULTIPLY_2 = tl.constexpr(noise.MULTIPLY_2 & 0xFFFFFFFF)
_MULTIPLY_3 = tl.constexpr(noise.MULTIPLY_3 & 0xFFFFFFFF)
_LOG2_E = tl.constexpr(1.4426950408889634)
_LEAST_EXPONENT = tl.constexpr(-200.0)  # 2^-200 is 0 in float32, and finite: -inf times 0 would be NaN


class Tiles(NamedTuple):
    """Shape of the product's tiles, and compiler options."""

    rows: int
    tokens: int
    features: int
    stages: int
    warps: int
    resident: int = 1  # programs that fit on a multiprocessor at a time


class Search(NamedTuple):
    """How `_draw` searches a row: groups of tokens that it bounds at a time, warps, and registers of a thread."""

    groups: int
    warps: int
    registers: int


SEARCH = Search(128, 1, 160)  # without a maximum of registers, the assembler spills some for fp32

# For Triton's interpreter on a CPU, which takes as long for a small array as for a large one.
INTERPRETED = Tiles(256, 1024, 64, 1, 4)
INTERPRETED_ROWS = 8192  # the most rows of a program of `_draw`, which has one row on a GPU


def tiles(dtype: torch.dtype, capability: tuple[int, int]) -> Tiles:
    """Return the tiles for a GPU of that compute capability; `benchmarks/sampler.py --tune` tries others."""
    # The large tiles need 145 KiB of shared memory, which only 9.x and 10.x have; 8.6, 8.9 and 12.0 have 99 KiB.
    if dtype == torch.float32:
        return Tiles(64, 64, 32, 2, 4)
    return Tiles(128, 256, 64, 3, 8) if capability[0] in (9, 10) else Tiles(128, 128, 64, 3, 8)


def sample(request: Request, shape: Tiles | None = None, search: Search = SEARCH) -> SampleResult:
    """Run both kernels; `shape` replaces the tiles that are chosen by default, and `search` the way to draw."""
    hidden_MD, weight_VD, bias_V, scale, prior_V, keys_M, original_M = request
    (m, d), v, device = hidden_MD.shape, len(weight_VD), hidden_MD.device
    ids_M = torch.zeros(m, dtype=torch.int64, device=device)
    valid_M = torch.zeros(m, dtype=torch.bool, device=device)
    statistics_3M = torch.empty(3, m, dtype=torch.float32, device=device)
    if m:
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
        highest_MS = torch.empty(m, triton.cdiv(v, SPAN), dtype=torch.int16, device=device)
        sums_3MC = torch.empty(3, m, chunks, dtype=torch.float32, device=device)
        _scan[row_blocks, chunks](
            hidden_MD, weight_VD, added_V, highest_MS, sums_3MC, float(scale), m, v, highest_MS.shape[1], each, chunks,
            D=d, BM=shape.rows, BN=shape.tokens, BK=shape.features, SPAN=SPAN,
            WIDEN=not hidden_MD.is_cuda, num_warps=shape.warps, num_stages=shape.stages,
        )  # fmt: skip
        _draw[(triton.cdiv(m, rows_of_draw),)](
            hidden_MD, weight_VD, added_V, highest_MS, sums_3MC, keys_M, keys_M if original_M is None else original_M,
            ids_M, valid_M, statistics_3M, float(scale), m, v, highest_MS.shape[1], chunks,
            D=d, D_PADDED=triton.next_power_of_2(d), CHUNKS=max(16, triton.next_power_of_2(chunks)), SPAN=SPAN,
            GROUPS=search.groups, MARGIN=MARGIN, ROWS=rows_of_draw, ORIGINAL=original_M is not None,
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
        moment = kept * (moment + change * total) + tl.sum(weights * tl.maximum(shifted, _LEAST_EXPONENT), 1)
        total = kept * total + tl.sum(weights, 1)
        top = new_top
    sums_at = sums + rows_64 * chunks + chunk
    size = M.to(tl.int64) * chunks
    tl.store(sums_at, top, mask=rows < M)
    tl.store(sums_at + size, total, mask=rows < M)
    tl.store(sums_at + 2 * size, moment / _LOG2_E, mask=rows < M)


@triton.jit
def _random_bits(low, high, counters):
    """Return the bits of `noise.random_bits` as uint32, from the halves of a key and counters."""
    x = low + counters * _STEP
    x = (x ^ (x >> 16)) * _MULTIPLY_1
    x = ((x ^ (x >> 15)) + high) * _MULTIPLY_2
    x = (x ^ (x >> 13)) * _MULTIPLY_3
    return x ^ (x >> 16)


@triton.jit
def _exponential(bits):
    """Return -log(1 - U), U = (bits + 1/2) / 2^32; a series gives the small values, which decide draws, precisely."""
    u = tl.minimum(bits.to(tl.float32) * (2.0**-32) + 2.0**-33, 1.0 - 2.0**-24)
    series = u * (1.0 + u * (1 / 2 + u * (1 / 3 + u * (1 / 4 + u * (1 / 5 + u * (1 / 6))))))
    return tl.where(u < 0.0625, series, -tl.log(1.0 - u))


@triton.jit
def _score(vectors_RD, weight, added, token_R, scale, features_D, D: tl.constexpr):
    """Return hidden . weight * scale + added of one token for each row."""
    at_RD = weight + token_R[:, None].to(tl.int64) * D + features_D[None, :]
    head_RD = tl.load(at_RD, mask=features_D[None, :] < D, other=0.0).to(tl.float32)
    return tl.sum(vectors_RD * head_RD, 1) * scale + tl.load(added + token_R)


@triton.jit
def _first(flags_RC, places_C):
    """Return the lowest place of each row whose flag is set, or the last place."""
    return tl.min(tl.where(flags_RC, places_C[None, :], places_C.shape[0] - 1), 1)


@triton.jit
def _pick(values_RC, places_C, place_R):
    """Return the value at one place of each row."""
    return tl.sum(tl.where(places_C[None, :] == place_R[:, None], values_RC, 0.0), 1)


@triton.jit(do_not_specialize=_NUMBERS[:-1])
def _draw(
    hidden, weight, added, highest, sums, keys, original, ids, valid, statistics, scale, M, V, spans, chunks,
    D: tl.constexpr, D_PADDED: tl.constexpr, CHUNKS: tl.constexpr, SPAN: tl.constexpr, GROUPS: tl.constexpr,
    MARGIN: tl.constexpr, ROWS: tl.constexpr, ORIGINAL: tl.constexpr,
):  # fmt: skip
    """Combine the sums of ROWS rows, draw their tokens, and store the statistics."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there_R = rows < M
    m_R = tl.minimum(rows, M - 1).to(tl.int64)
    size = M.to(tl.int64) * chunks

    chunk = tl.arange(0, CHUNKS)
    sums_RC = sums + m_R[:, None] * chunks + chunk[None, :]
    used_RC = (chunk < chunks)[None, :] & there_R[:, None]
    top_RC = tl.load(sums_RC, mask=used_RC, other=-float("inf"))
    total_RC = tl.load(sums_RC + size, mask=used_RC, other=0.0)
    moment_RC = tl.load(sums_RC + 2 * size, mask=used_RC, other=0.0)
    top_R = tl.max(top_RC, 1)
    change_RC = tl.where(top_RC == -float("inf"), _LEAST_EXPONENT, top_RC - top_R[:, None])
    kept_RC = tl.exp(change_RC)
    total_R = tl.sum(kept_RC * total_RC, 1)
    mean_R = tl.sum(kept_RC * (moment_RC + change_RC * total_RC), 1) / total_R
    log_total_R = tl.log(total_R)
    valid_R = (tl.abs(top_R) < float("inf")) & (total_R == total_R)  # maxima may skip NaN, sums do not

    features = tl.arange(0, D_PADDED)
    at_RD = hidden + m_R[:, None] * D + features[None, :]
    vectors_RD = tl.load(at_RD, mask=features[None, :] < D, other=0.0).to(tl.float32)
    key_R1 = tl.load(keys + m_R)[:, None]
    low_R1, high_R1 = key_R1.to(tl.uint32), (key_R1 >> 32).to(tl.uint32)
    places, offsets = tl.arange(0, GROUPS), tl.arange(0, _GROUP)
    best_R = tl.full([ROWS], -float("inf"), tl.float32)  # score and noise
    score_R = best_R  # without the noise
    token_R = tl.zeros([ROWS], tl.int32)
    # A row that is done or not valid has an infinite floor, so the loops below skip it.
    open_R = valid_R & there_R
    floor_R = tl.where(open_R, top_R + log_total_R - MARGIN, float("inf"))
    lowered = False
    while tl.max(open_R.to(tl.int32), 0) > 0:
        for start in range(0, tl.cdiv(V, _GROUP), GROUPS):
            group = start + places
            span = group // (SPAN // _GROUP)
            bits_RG = tl.load(highest + m_R[:, None] * spans + span[None, :], mask=(span < spans)[None, :], other=0)
            high_RG = (bits_RG.to(tl.int32) << 16).to(tl.float32, bitcast=True)
            counters = (-2 * group - 1).to(tl.uint32, bitcast=True)[None, :]
            least_RG = _exponential(_random_bits(low_R1, high_R1, counters)) * (1.0 / _GROUP)
            bound_RG = tl.where((span < spans)[None, :], high_RG - tl.log(least_RG), -float("inf"))
            bound_R = tl.max(bound_RG, 1)
            goal_R = tl.maximum(floor_R, best_R)
            while tl.max((bound_R > goal_R).to(tl.int32), 0) > 0:
                # The tokens of the group with the highest bound in each row.
                place_R = _first(bound_RG == bound_R[:, None], places)
                first_R = (start + place_R) * _GROUP
                tokens_RC = first_R[:, None] + offsets[None, :]
                counter_R1 = (-2 * (start + place_R) - 2).to(tl.uint32, bitcast=True)[:, None]
                winner_R1 = (_random_bits(low_R1, high_R1, counter_R1) & (_GROUP - 1)).to(tl.int32)
                more_RC = _exponential(_random_bits(low_R1, high_R1, tokens_RC.to(tl.uint32, bitcast=True)))
                more_RC = tl.where(offsets[None, :] == winner_R1, 0.0, more_RC)
                gumbel_RC = -tl.log(_pick(least_RG, places, place_R)[:, None] + more_RC)
                reach_RC = _pick(high_RG, places, place_R)[:, None] + gumbel_RC
                reach_RC = tl.where((tokens_RC < V) & (bound_R > goal_R)[:, None], reach_RC, -float("inf"))
                reach_R = tl.max(reach_RC, 1)
                while tl.max((reach_R > goal_R).to(tl.int32), 0) > 0:
                    offset_R = _first(reach_RC == reach_R[:, None], offsets)
                    found_R = tl.minimum(first_R + offset_R, V - 1)
                    found_score_R = _score(vectors_RD, weight, added, found_R, scale, features, D)
                    perturbed_R = found_score_R + _pick(gumbel_RC, offsets, offset_R)
                    better_R = (reach_R > goal_R) & (perturbed_R > best_R)
                    best_R = tl.where(better_R, perturbed_R, best_R)
                    score_R = tl.where(better_R, found_score_R, score_R)
                    token_R = tl.where(better_R, found_R, token_R)
                    goal_R = tl.maximum(floor_R, best_R)
                    reach_RC = tl.where(offsets[None, :] == offset_R[:, None], -float("inf"), reach_RC)
                    reach_R = tl.max(reach_RC, 1)
                bound_RG = tl.where(places[None, :] == place_R[:, None], -float("inf"), bound_RG)
                bound_R = tl.max(bound_RG, 1)
        open_R = open_R & (best_R < floor_R)  # another token may be better if the best is below its floor
        floor_R = tl.where(open_R, tl.where(lowered, -float("inf"), floor_R - 4.0), float("inf"))
        lowered = True
    tl.store(ids + m_R, token_R.to(tl.int64), mask=there_R)
    tl.store(valid + m_R, valid_R, mask=there_R)
    if ORIGINAL:
        log_sum_R = top_R + log_total_R
        original_R = tl.load(original + m_R).to(tl.int32)
        original_score_R = _score(vectors_RD, weight, added, original_R, scale, features, D)
        tl.store(statistics + m_R, score_R - log_sum_R, mask=there_R)
        tl.store(statistics + M + m_R, original_score_R - log_sum_R, mask=there_R)
        tl.store(statistics + 2 * M + m_R, tl.maximum(log_total_R - mean_R, 0.0), mask=there_R)
