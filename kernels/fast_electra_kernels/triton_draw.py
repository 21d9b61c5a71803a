"""The kernel that draws a token for each row, from the sums and highest scores that `triton_sampler._scan` stores.

`_draw` has one program for each row. A group of tokens has a bound: its highest score plus the most noise that its
smallest exponential allows (see `noise`). Only groups whose bound is above the best token so far can hold the winner.
A program keeps a table of slots. Each slot is responsible for some of the row's groups and holds the one with the
highest bound. The program fills the table in one pass over the row, and then examines the groups in it from the highest
bound down. It examines the groups of several parts of the table at a time, because each step waits for memory. It
recomputes the scores of the few tokens that can win. Two good groups may share a slot, so the program also keeps the
highest bound of the groups outside the table. If that bound is above the best token, it fills the table again with the
next groups. So the draw is exact.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from fast_electra_kernels import noise

_GROUP = tl.constexpr(noise.GROUP)
_STEP = tl.constexpr(noise.STEP & 0xFFFFFFFF)
_MULTIPLY_1 = tl.constexpr(noise.MULTIPLY_1)
_MULTIPLY_2 = tl.constexpr(noise.MULTIPLY_2 & 0xFFFFFFFF)
_MULTIPLY_3 = tl.constexpr(noise.MULTIPLY_3 & 0xFFFFFFFF)
_LN_2 = tl.constexpr(0.6931471805599453)
_LOG_GROUP = tl.constexpr(3.4657359027997265)
LEAST_EXPONENT = tl.constexpr(-200.0)  # 2^-200 is 0 in float32, and finite: -inf times 0 would be NaN


class Search(NamedTuple):
    """How `_draw` searches a row, and compiler options."""

    parts: int  # of the table
    slots: int  # of a part
    loads: int  # of a token's features that a thread has under way at a time
    warps: int
    registers: int  # the most of a thread


def default_search(dtype: torch.dtype) -> Search:
    """Return how `_draw` searches: 16 warps share a multiprocessor, or 8 for fp32, which would spill registers."""
    return Search(8, 32, 8, 1, 128 if dtype.itemsize == 2 else 232)


@triton.jit
def random_bits(low, high, counters):
    """Return the bits of `noise.random_bits` as uint32, from the halves of a key and counters."""
    x = low + counters * _STEP
    x = (x ^ (x >> 16)) * _MULTIPLY_1
    x = ((x ^ (x >> 15)) + high) * _MULTIPLY_2
    x = (x ^ (x >> 13)) * _MULTIPLY_3
    return x ^ (x >> 16)


@triton.jit
def _bits(key, counters):
    """Return the same from int64 keys and int32 counters."""
    return random_bits(key.to(tl.uint32), (key >> 32).to(tl.uint32), counters.to(tl.uint32, bitcast=True))


@triton.jit
def _exponential(bits):
    """Return -log(1 - U), U = (bits + 1/2) / 2^32; a series gives the small values, which decide draws, precisely."""
    u = tl.minimum(bits.to(tl.float32) * (2.0**-32) + 2.0**-33, 1.0 - 2.0**-24)
    series = u * (1.0 + u * (1 / 2 + u * (1 / 3 + u * (1 / 4 + u * (1 / 5 + u * (1 / 6))))))
    return tl.where(u < 0.0625, series, -tl.log(1.0 - u))


@triton.jit
def _most_noise(bits):
    """Return at least -log(_exponential(bits) / GROUP), at most 0.07 more if that is large, without a logarithm."""
    # -log(1 - u) is at least u. The bits of a float, read as an integer, are 2^23 times its exponent plus its mantissa,
    # which is at most log2 (plus 127). The last term is more than any rounding error.
    log2 = (bits.to(tl.float32) + 0.5).to(tl.int32, bitcast=True).to(tl.float32)
    return ((127 + 32) * _LN_2 + _LOG_GROUP + 1e-4) - log2 * (_LN_2 * 2.0**-23)


@triton.jit
def _score(hidden_R, weight, added, token_RP, scale, D: tl.constexpr, FEATURES: tl.constexpr, LOADS: tl.constexpr):
    """Return hidden . weight * scale + added of some tokens for each row; `hidden_R` are addresses."""
    features = tl.arange(0, FEATURES)[None, None, :]
    shape: tl.constexpr = [token_RP.shape[0], token_RP.shape[1], FEATURES]
    product_RPF = tl.zeros(shape, tl.float32)
    # All parts load the same hidden state: then each thread has the numbers that it multiplies.
    hidden_RPF = tl.broadcast_to(hidden_R[:, None, None] + features, shape)
    weight_RPF = weight + token_RP[:, :, None].to(tl.int64) * D + features
    for k in tl.range(0, D, FEATURES, loop_unroll_factor=LOADS):
        if D % FEATURES == 0:
            vector_RPF, head_RPF = tl.load(hidden_RPF + k), tl.load(weight_RPF + k)
        else:
            vector_RPF = tl.load(hidden_RPF + k, mask=features < D - k, other=0.0)
            head_RPF = tl.load(weight_RPF + k, mask=features < D - k, other=0.0)
        product_RPF += vector_RPF.to(tl.float32) * head_RPF.to(tl.float32)
    return tl.sum(product_RPF, 2) * scale + tl.load(added + token_RP)


@triton.jit
def _first(flags, places):
    """Return the lowest place along the last axis whose flag is set, or a large number."""
    return tl.min(tl.where(flags, places, 0x7FFFFFFF), len(flags.shape) - 1)


@triton.jit
def _pick(values, chosen):
    """Return the value at the one place along the last axis that is chosen."""
    return tl.sum(tl.where(chosen, values, 0), len(values.shape) - 1)


@triton.jit(do_not_specialize=["M", "V", "spans", "chunks"])
def _draw(
    hidden, weight, added, highest, sums, keys, original, ids, valid, statistics, scale, M, V, spans, chunks,
    D: tl.constexpr, FEATURES: tl.constexpr, CHUNKS: tl.constexpr, SPAN: tl.constexpr, PARTS: tl.constexpr,
    SLOTS: tl.constexpr, LOADS: tl.constexpr, ROWS: tl.constexpr, ORIGINAL: tl.constexpr,
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
    change_RC = tl.where(top_RC == -float("inf"), LEAST_EXPONENT, top_RC - top_R[:, None])
    kept_RC = tl.exp(change_RC)
    total_R = tl.sum(kept_RC * total_RC, 1)
    mean_R = tl.sum(kept_RC * (moment_RC + change_RC * total_RC), 1) / total_R
    log_total_R = tl.log(total_R)
    valid_R = (tl.abs(top_R) < float("inf")) & (total_R == total_R)  # maxima may skip NaN, sums do not

    hidden_R = hidden + m_R * D
    # `spans` is a multiple of 8. The compiler learns so much of it that a thread loads as many highest scores at a time
    # as features. It then gives all arrays here the same layout: a few threads for each part.
    VECTOR: tl.constexpr = 128 // hidden.dtype.element_ty.primitive_bitwidth
    spans = spans // VECTOR * VECTOR
    key_R1 = tl.load(keys + m_R)[:, None]
    key_R11 = key_R1[:, :, None]
    slots, offsets = tl.arange(0, SLOTS)[None, None, :], tl.arange(0, _GROUP)[None, None, :]
    places = tl.arange(0, PARTS)[None, :, None] * SLOTS + slots
    best_RP = tl.full([ROWS, PARTS], -float("inf"), tl.float32)  # score and noise
    score_RP = best_RP  # without the noise
    token_RP = tl.zeros([ROWS, PARTS], tl.int32)
    bound_RPS = tl.full([ROWS, PARTS, SLOTS], float("inf"), tl.float32)  # the table: bounds and groups
    group_RPS = tl.zeros([ROWS, PARTS, SLOTS], tl.int32)
    # The highest bound of the groups that have not been in the table. Rows that are done, or not valid, are skipped.
    rest_R = tl.where(valid_R & there_R, float("inf"), -float("inf"))
    while tl.max((rest_R > tl.max(best_RP, 1)).to(tl.int32), 0) > 0:
        last_bound_RPS, last_group_RPS = bound_RPS, group_RPS
        bound_RPS = tl.full([ROWS, PARTS, SLOTS], -float("inf"), tl.float32)
        rest_RPS = bound_RPS
        going_R11 = (rest_R > tl.max(best_RP, 1))[:, None, None]
        for start in range(0, spans, PARTS * SLOTS):
            span = start + places
            loaded_RPS = (span < spans) & going_R11
            bits_RPS = tl.load(highest + m_R[:, None, None] * spans + span, mask=loaded_RPS, other=0)
            high_RPS = (bits_RPS.to(tl.int32) << 16).to(tl.float32, bitcast=True)
            for part in tl.static_range(SPAN // _GROUP):
                group = span * (SPAN // _GROUP) + part
                new_RPS = high_RPS + _most_noise(_bits(key_R11, -2 * group - 1))
                tie_RPS = (new_RPS == last_bound_RPS) & (group > last_group_RPS)
                there_RPS = going_R11 & (group < tl.cdiv(V, _GROUP))
                new_RPS = tl.where(there_RPS & ((new_RPS < last_bound_RPS) | tie_RPS), new_RPS, -float("inf"))
                rest_RPS = tl.maximum(rest_RPS, tl.minimum(bound_RPS, new_RPS))
                group_RPS = tl.where(new_RPS > bound_RPS, group, group_RPS)
                bound_RPS = tl.maximum(bound_RPS, new_RPS)
        rest_R = tl.max(tl.max(rest_RPS, 2), 1)
        left_RPS = bound_RPS  # not yet examined
        bound_RP = tl.max(left_RPS, 2)
        goal_R1 = tl.max(best_RP, 1)[:, None]
        while tl.max(tl.max((bound_RP > goal_R1).to(tl.int32), 1), 0) > 0:
            # The tokens of the group with the highest bound in each part.
            slot_RP = _first(left_RPS == bound_RP[:, :, None], slots)
            chosen_RPS = slots == slot_RP[:, :, None]
            group_RP = _pick(group_RPS, chosen_RPS)
            high_RP = tl.load(highest + m_R[:, None] * spans + group_RP // (SPAN // _GROUP)).to(tl.int32) << 16
            least_RP = _exponential(_bits(key_R1, -2 * group_RP - 1)) * (1.0 / _GROUP)
            offset_RP = (_bits(key_R1, -2 * group_RP - 2) & (_GROUP - 1)).to(tl.int32)
            tokens_RPG = group_RP[:, :, None] * _GROUP + offsets
            more_RPG = _exponential(_bits(key_R11, tokens_RPG))
            more_RPG = tl.where(offsets == offset_RP[:, :, None], 0.0, more_RPG)
            gumbel_RPG = -tl.log(least_RP[:, :, None] + more_RPG)
            reach_RPG = high_RP.to(tl.float32, bitcast=True)[:, :, None] + gumbel_RPG
            reach_RPG = tl.where((tokens_RPG < V) & (bound_RP > goal_R1)[:, :, None], reach_RPG, -float("inf"))
            # The first token is the one with the most noise; the others count only if they can beat it.
            reach_RP = bound_RP
            while tl.max(tl.max((reach_RP > goal_R1).to(tl.int32), 1), 0) > 0:
                found_RP = group_RP * _GROUP + offset_RP
                tried_RPG = offsets == offset_RP[:, :, None]
                active_RP = (reach_RP > goal_R1) & (found_RP < V)
                head_RP = tl.where(active_RP, found_RP, 0)  # the other parts load a token that is in the cache
                new_RP = _score(hidden_R, weight, added, head_RP, scale, D, FEATURES, LOADS)
                perturbed_RP = new_RP + _pick(gumbel_RPG, tried_RPG)
                better_RP = active_RP & (perturbed_RP > best_RP)
                best_RP = tl.where(better_RP, perturbed_RP, best_RP)
                score_RP = tl.where(better_RP, new_RP, score_RP)
                token_RP = tl.where(better_RP, found_RP, token_RP)
                goal_R1 = tl.max(best_RP, 1)[:, None]
                reach_RPG = tl.where(tried_RPG, -float("inf"), reach_RPG)
                reach_RP = tl.max(reach_RPG, 2)
                offset_RP = _first(reach_RPG == reach_RP[:, :, None], offsets)
            left_RPS = tl.where(chosen_RPS, -float("inf"), left_RPS)
            bound_RP = tl.max(left_RPS, 2)
    part = tl.arange(0, PARTS)[None, :]
    best_RP = part == _first(best_RP == tl.max(best_RP, 1)[:, None], part)[:, None]
    score_R, token_R = _pick(score_RP, best_RP), _pick(token_RP, best_RP)
    tl.store(ids + m_R, token_R.to(tl.int64), mask=there_R)
    tl.store(valid + m_R, valid_R, mask=there_R)
    if ORIGINAL:
        log_sum_R = top_R + log_total_R
        original_RP = tl.broadcast_to(tl.load(original + m_R).to(tl.int32)[:, None], [ROWS, PARTS])
        original_score_R = tl.max(_score(hidden_R, weight, added, original_RP, scale, D, FEATURES, LOADS), 1)
        tl.store(statistics + m_R, score_R - log_sum_R, mask=there_R)
        tl.store(statistics + M + m_R, original_score_R - log_sum_R, mask=there_R)
        tl.store(statistics + 2 * M + m_R, tl.maximum(log_total_R - mean_R, 0.0), mask=there_R)
