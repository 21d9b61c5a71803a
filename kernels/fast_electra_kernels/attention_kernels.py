"""The Triton kernels of `triton_attention`, which launches them and says what they compute.

All of them hold tiles of scores in base 2: q k^T * scale + bias, where `scale` and `bias` include log2(e). The bias of
a tile is read from a row of its head, at (key - query) + centre. That row has room on both sides, so tiles that reach
beyond a sequence need no mask there. The kernels that hold a block of queries have tiles [queries, keys]. The one that
holds a block of keys has tiles [keys, queries], so that its products take the probabilities from registers.

Beyond the end of a sequence, its last block reads zeros. The log-sum-exp of queries that do not exist is infinite, so
their probabilities are 0. Row statistics are [B, H, padded], where `padded` is a multiple of every block: they need no
mask and are read in pairs.

With s the factor of the kept probabilities, the gradient of a score is s (kept * slope - probability * delta / s). The
factor s is multiplied in at the end.
"""

import triton
import triton.language as tl

from fast_electra_kernels.triton_draw import random_bits

# Dropout: a thoroughly mixed word for each query and a cheap one for each pair of keys give 32 bits, 16 for each key.
# The keys of a pair are 8 apart: the tensor cores leave both to one thread, in tiles of either orientation, and the
# compiler computes their common bits once.
PAIR = 8
_PAIR = tl.constexpr(PAIR)
KEY_STEP, MULTIPLY = 0x9E3779B9, 0x846CA68B
_KEY_STEP, _MULTIPLY = tl.constexpr(KEY_STEP), tl.constexpr(MULTIPLY)


@triton.jit
def _key_words(begin, columns):
    """Return a word for each key position `begin + columns`, the same for both keys of a pair: uint32."""
    return (begin + (columns & ~_PAIR)).to(tl.uint32) * _KEY_STEP


@triton.jit
def _kept(words, halves, threshold):
    """Return whether a probability is kept: whether its 16 bits are at least the threshold, both shifted up by 16.

    `words` is the query's word ^ the key's. `halves` is the key's position & PAIR.
    """
    bits = words * _MULTIPLY
    bits = bits ^ (bits >> 15)
    return (bits << (halves * (16 // _PAIR)).to(tl.uint32)) >= threshold.to(tl.uint32, bitcast=True)


@triton.jit
def _product(a, b, WIDEN: tl.constexpr):
    """Return a b in float32; `WIDEN` is for the interpreter, which cannot multiply bfloat16."""
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _values(places, WIDEN: tl.constexpr):
    """Return the fp32 values at these places. `tl.load` would copy them to shared memory, 4 bytes at a time."""
    if WIDEN:
        return tl.load(places)
    return tl.inline_asm_elementwise(
        "ld.global.nc.f32 $0, [$1];", "=f,l", [places], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def _load(tensor, rows_R, length, stride, D: tl.constexpr):
    """Return rows [R, D] of a sequence whose first row is at `tensor`; rows beyond its length are 0."""
    at_RD = tensor + rows_R[:, None] * stride + tl.arange(0, D)[None, :]
    return tl.load(at_RD, mask=(rows_R < length)[:, None], other=0.0)


# Arguments for which Triton compiles no special cases, because they differ from batch to batch.
NUMBERS = ["low", "high", "threshold", "sequences", "chunks", "key_blocks"]


@triton.jit(do_not_specialize=NUMBERS)
def forward(
    q, k, v, bias, out, lse, words, starts, lengths, q_t, q_h, k_t, k_h, v_t, v_h, padded, width, centre, scale, low,
    high, threshold, keep_scale, H: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    DROPOUT: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Store the output, log2-sum-exp2 and dropout words of BM queries of one head and sequence."""
    head, sequence = tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + sequence)
    if tl.program_id(0) * BM >= length:
        return
    start = tl.load(starts + sequence).to(tl.int64)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns, features = tl.arange(0, BN), tl.arange(0, D)
    tile_q = _load(q + start * q_t + head * q_h, rows, length, q_t, D)
    k += start * k_t + head * k_h
    v += start * v_t + head * v_h
    bias_at = bias + head * width + centre - tl.program_id(0) * BM + (columns[None, :] - tl.arange(0, BM)[:, None])
    statistics_at = (sequence * H + head).to(tl.int64) * padded + rows
    if DROPOUT:
        counter = (sequence * H + head).to(tl.uint32)
        stream = random_bits(low.to(tl.uint32, bitcast=True), high.to(tl.uint32, bitcast=True), counter)
        word = random_bits(stream, high.to(tl.uint32, bitcast=True), rows.to(tl.uint32))
        tl.store(words + statistics_at, word.to(tl.int32, bitcast=True))
    top = tl.full([BM], -float("inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    result = tl.zeros([BM, D], tl.float32)
    for begin in range(0, length, BN):
        keys = begin + columns
        tile_k = _load(k, keys, length, k_t, D)
        tile_v = _load(v, keys, length, v_t, D)
        scores = _product(tile_q, tl.trans(tile_k), WIDEN) * scale + _values(bias_at + begin, WIDEN)
        if begin + BN > length:
            scores = tl.where((keys < length)[None, :], scores, -float("inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        shrink = tl.exp2(top - new_top)
        weights = tl.exp2(scores - new_top[:, None])
        total = total * shrink + tl.sum(weights, 1)
        if DROPOUT:
            both = word[:, None] ^ _key_words(begin, columns)[None, :]
            weights = tl.where(_kept(both, (columns & _PAIR)[None, :], threshold), weights, 0.0)
        result = result * shrink[:, None] + _product(weights.to(tile_v.dtype), tile_v, WIDEN)
        top = new_top
    result *= (keep_scale / total)[:, None]
    out_at = out + ((start + rows) * H + head)[:, None] * D + features[None, :]
    tl.store(out_at, result.to(out.dtype.element_ty), mask=(rows < length)[:, None])
    tl.store(lse + statistics_at, tl.where(rows < length, top + tl.log2(total), float("inf")))


@triton.jit(do_not_specialize=NUMBERS)
def backward_queries(
    q, k, v, bias, out, grad, lse, delta, words, grad_q, starts, lengths, q_t, q_h, k_t, k_h, v_t, v_h, g_t, g_h, d_t,
    d_h, padded, width, centre, scale, softmax_scale, threshold, keep_scale, H: tl.constexpr, D: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, DROPOUT: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Store the gradient of BM queries, and delta / s, where delta is a query's output times the output's gradient."""
    head, sequence = tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + sequence)
    if tl.program_id(0) * BM >= length:
        return
    start = tl.load(starts + sequence).to(tl.int64)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns, features = tl.arange(0, BN), tl.arange(0, D)
    tile_q = _load(q + start * q_t + head * q_h, rows, length, q_t, D)
    tile_grad = _load(grad + start * g_t + head * g_h, rows, length, g_t, D)
    tile_out = _load(out + (start * H + head) * D, rows, length, H * D, D)
    deltas = tl.sum(tile_out.to(tl.float32) * tile_grad.to(tl.float32), 1) / keep_scale
    statistics_at = (sequence * H + head).to(tl.int64) * padded + rows
    tl.store(delta + statistics_at, deltas)
    sums = tl.load(lse + statistics_at)
    if DROPOUT:
        word = tl.load(words + statistics_at).to(tl.uint32, bitcast=True)
    k += start * k_t + head * k_h
    v += start * v_t + head * v_h
    bias_at = bias + head * width + centre - tl.program_id(0) * BM + (columns[None, :] - tl.arange(0, BM)[:, None])
    result = tl.zeros([BM, D], tl.float32)
    for begin in range(0, length, BN):
        keys = begin + columns
        tile_k = _load(k, keys, length, k_t, D)
        tile_v = _load(v, keys, length, v_t, D)
        scores = _product(tile_q, tl.trans(tile_k), WIDEN) * scale + _values(bias_at + begin, WIDEN)
        if begin + BN > length:
            scores = tl.where((keys < length)[None, :], scores, -float("inf"))
        weights = tl.exp2(scores - sums[:, None])
        kept = weights
        if DROPOUT:
            both = word[:, None] ^ _key_words(begin, columns)[None, :]
            kept = tl.where(_kept(both, (columns & _PAIR)[None, :], threshold), weights, 0.0)
        slopes = kept * _product(tile_grad, tl.trans(tile_v), WIDEN) - weights * deltas[:, None]
        result += _product(slopes.to(tile_k.dtype), tile_k, WIDEN)
    at = grad_q + (start + rows)[:, None] * d_t + head * d_h + features[None, :]
    tl.store(at, (result * (softmax_scale * keep_scale)).to(grad_q.dtype.element_ty), mask=(rows < length)[:, None])


@triton.jit(do_not_specialize=NUMBERS)
def backward_keys(
    q, k, v, bias, grad, lse, delta, words, grad_k, grad_v, starts, lengths, q_t, q_h, k_t, k_h, v_t, v_h, g_t, g_h,
    d_t, d_h, padded, width, centre, scale, softmax_scale, threshold, keep_scale, H: tl.constexpr, D: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, DROPOUT: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Store the gradients of BN keys and values of one head and sequence."""
    head, sequence = tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + sequence)
    if tl.program_id(0) * BN >= length:
        return
    start = tl.load(starts + sequence).to(tl.int64)
    keys = tl.program_id(0) * BN + tl.arange(0, BN)
    columns, features = tl.arange(0, BM), tl.arange(0, D)
    tile_k = _load(k + start * k_t + head * k_h, keys, length, k_t, D)
    tile_v = _load(v + start * v_t + head * v_h, keys, length, v_t, D)
    q += start * q_t + head * q_h
    grad += start * g_t + head * g_h
    statistics_at = (sequence * H + head).to(tl.int64) * padded
    bias_at = bias + head * width + centre + keys[:, None] - columns[None, :]
    key_words = _key_words(tl.program_id(0) * BN, tl.arange(0, BN))[:, None]
    result_k = tl.zeros([BN, D], tl.float32)
    result_v = tl.zeros([BN, D], tl.float32)
    for begin in range(0, length, BM):
        rows = begin + columns
        tile_q = _load(q, rows, length, q_t, D)
        tile_grad = _load(grad, rows, length, g_t, D)
        sums = tl.load(lse + statistics_at + rows)
        deltas = tl.load(delta + statistics_at + rows)
        scores = _product(tile_k, tl.trans(tile_q), WIDEN) * scale + _values(bias_at - begin, WIDEN)
        weights = tl.exp2(scores - sums[None, :])
        kept = weights
        if DROPOUT:
            word = tl.load(words + statistics_at + rows).to(tl.uint32, bitcast=True)
            kept = tl.where(_kept(word[None, :] ^ key_words, (keys & _PAIR)[:, None], threshold), weights, 0.0)
        result_v += _product(kept.to(tile_grad.dtype), tile_grad, WIDEN)
        slopes = kept * _product(tile_v, tl.trans(tile_grad), WIDEN) - weights * deltas[None, :]
        result_k += _product(slopes.to(tile_q.dtype), tile_q, WIDEN)
    at = (start + keys)[:, None] * d_t + head * d_h + features[None, :]
    there = (keys < length)[:, None]
    tl.store(grad_k + at, (result_k * (softmax_scale * keep_scale)).to(grad_k.dtype.element_ty), mask=there)
    tl.store(grad_v + at, (result_v * keep_scale).to(grad_v.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=NUMBERS)
def sort(lengths, order, sequences, BLOCK: tl.constexpr):
    """Store the numbers of the sequences from the longest to the shortest; equal ones keep their order."""
    mine = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    my_length = tl.load(lengths + mine, mask=mine < sequences, other=0)
    place = tl.zeros([BLOCK], tl.int32)
    for begin in range(0, sequences, BLOCK):
        other = begin + tl.arange(0, BLOCK)
        length = tl.load(lengths + other, mask=other < sequences, other=-1)[None, :]
        before = (length > my_length[:, None]) | ((length == my_length[:, None]) & (other[None, :] < mine[:, None]))
        place += tl.sum(before.to(tl.int32), 1)
    tl.store(order + place, mine, mask=mine < sequences)


@triton.jit(do_not_specialize=NUMBERS)
def backward_bias(
    q, k, v, bias, grad, lse, delta, words, sums, order, starts, lengths, q_t, q_h, k_t, k_h, v_t, v_h, g_t, g_h,
    padded, width, centre, scale, threshold, keep_scale, sequences, key_blocks, H: tl.constexpr, D: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, DROPOUT: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Add one tile's score gradients over a chunk of the sequences, and store its sums along the diagonals, [2 BN].

    `order` sorts the sequences from long to short, so those that reach the tile come first.
    """
    head, chunk, chunks = tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    rows = (tl.program_id(0) // key_blocks) * BM + tl.arange(0, BM)
    keys = (tl.program_id(0) % key_blocks) * BN + tl.arange(0, BN)
    first_row, first_key = (tl.program_id(0) // key_blocks) * BM, (tl.program_id(0) % key_blocks) * BN
    reach = 0
    for begin in range(0, sequences, 128):
        sequence = begin + tl.arange(0, 128)
        length_128 = tl.load(lengths + sequence, mask=sequence < sequences, other=0)
        reach += tl.sum((length_128 > tl.maximum(first_row, first_key)).to(tl.int32), 0)
    distance = tl.arange(0, BN)[None, :] - tl.arange(0, BM)[:, None]
    bias_tile = _values(bias + head * width + centre + first_key - first_row + distance, WIDEN)
    key_words = _key_words(first_key, tl.arange(0, BN))[None, :]
    total = tl.zeros([BM, BN], tl.float32)
    for index in range(chunk, reach, chunks):
        sequence = tl.load(order + index)
        start, length = tl.load(starts + sequence).to(tl.int64), tl.load(lengths + sequence)
        statistics_at = (sequence * H + head).to(tl.int64) * padded + rows
        tile_q = _load(q + start * q_t + head * q_h, rows, length, q_t, D)
        tile_k = _load(k + start * k_t + head * k_h, keys, length, k_t, D)
        tile_grad = _load(grad + start * g_t + head * g_h, rows, length, g_t, D)
        tile_v = _load(v + start * v_t + head * v_h, keys, length, v_t, D)
        lses = tl.load(lse + statistics_at)
        deltas = tl.load(delta + statistics_at)
        scores = _product(tile_q, tl.trans(tile_k), WIDEN) * scale + bias_tile
        if first_key + BN > length:
            scores = tl.where((keys < length)[None, :], scores, -float("inf"))
        weights = tl.exp2(scores - lses[:, None])
        kept = weights
        if DROPOUT:
            word = tl.load(words + statistics_at).to(tl.uint32, bitcast=True)
            kept = tl.where(_kept(word[:, None] ^ key_words, (keys & _PAIR)[None, :], threshold), weights, 0.0)
        total += kept * _product(tile_grad, tl.trans(tile_v), WIDEN) - weights * deltas[:, None]
    # Row i turns left by i columns. Column c then holds the diagonals key - query = c and, below a turn, c - BN.
    turned = tl.arange(0, BN)[None, :] + tl.arange(0, BM)[:, None]
    total = tl.gather(total * keep_scale, turned % BN, 1)
    at = sums + ((chunk * H + head) * tl.num_programs(0) + tl.program_id(0)) * (2 * BN) + tl.arange(0, BN)
    tl.store(at, tl.sum(tl.where(turned < BN, 0.0, total), 0))
    tl.store(at + BN, tl.sum(tl.where(turned < BN, total, 0.0), 0))


@triton.jit(do_not_specialize=NUMBERS)
def add_diagonals(
    sums, grad_bias, R, query_blocks, key_blocks, chunks, H: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BLOCK: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Add the sums [chunks, H, tiles, 2 BN] of `backward_bias` to the gradient [H, R] in a fixed order."""
    head = tl.program_id(1)
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    tiles = query_blocks * key_blocks
    for begin in range(0, tiles * chunks, TILES):
        number = begin + tl.arange(0, TILES)
        chunk, tile = number // tiles, number % tiles
        first = (tile % key_blocks) * BN - (tile // key_blocks) * BM - BN  # the diagonal of this tile's first sum
        index = places[:, None] - (R // 2) - first[None, :]
        at = sums + ((chunk * H + head) * tiles + tile)[None, :] * (2 * BN) + index
        there = (index >= 0) & (index < 2 * BN) & (number < tiles * chunks)[None, :]
        total += tl.sum(tl.load(at, mask=there, other=0.0), 1)
    tl.store(grad_bias + head * R + places, total.to(grad_bias.dtype.element_ty), mask=places < R)
