"""Sizes of the blocks that sampling works on, and of the memory that it needs."""

from collections.abc import Iterator

from fast_electra_kernels.noise import GROUP

# `blocked`: logits of one block, and the most rows that it may have. On a CPU a block fits into the last-level cache;
# `blocked_bf16` keeps fewer bytes for each logit. On a GPU blocks are larger, because each block costs dozens of kernel
# launches.
BLOCK_CPU, BLOCK_BF16, BLOCK_GPU = 1 << 20, 1 << 21, 1 << 25
ROWS_CPU, ROWS_GPU = 1 << 10, 1 << 13
# Bytes for each logit of a block, in float32: the logit or its exponential, and its distance from the highest one. If
# the last tokens do not fill a group, that block needs a copy too.
BLOCK_BYTES, LAST_BYTES = 8, 12

# `triton`: number of neighbouring tokens for which one highest score is stored, in 16 bits.
SPAN = 64


def ceil_div(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)


def spans_in_memory(vocabulary: int) -> int:
    """Return the number of spans that memory holds for each row: a multiple of 8, which fill 16 bytes."""
    return ceil_div(vocabulary, 8 * SPAN) * 8


def slices(count: int, size: int) -> Iterator[slice]:
    """Yield slices of at most `size`; a count of 0 gives one empty slice."""
    return (slice(start, min(start + size, count)) for start in range(0, max(count, 1), size))


def block_shape(rows: int, vocabulary: int, on_gpu: bool, rounded: bool = False) -> tuple[int, int]:
    """Return the rows and tokens of a block of logits; rows are split evenly, tokens in whole groups.

    `rounded` stands for `blocked_bf16`.
    """
    size, most = (BLOCK_GPU, ROWS_GPU) if on_gpu else (BLOCK_BF16 if rounded else BLOCK_CPU, ROWS_CPU)
    height = ceil_div(rows, ceil_div(rows, most)) if rows else 1
    if not on_gpu and height <= ROWS_CPU // 2:  # the logits of few rows are small, and so is the memory here
        size //= 2
    parts = max(1, round(height * vocabulary / size))
    return height, ceil_div(vocabulary, parts * GROUP) * GROUP


def most_chunks(row_blocks: int, processors: int = 132) -> int:
    """Return the most parts into which `triton` may split the vocabulary: few for many rows, to save memory.

    Each part stores sums for every row. If there are few rows, there are enough parts to occupy all processors.
    """
    return max(10, 2 * processors // row_blocks)


def workspace_bytes(rows: int, vocabulary: int, impl: str, on_gpu: bool) -> int:
    """Return the bytes that an implementation allocates in addition to its arguments, results included.

    `blocked_bf16` needs about as much as `blocked` does in float32, by which it is counted here.
    """
    if impl == "triton":
        sums, results = 3 * 4 * most_chunks(ceil_div(rows, 128)), 3 * 4 + 8 + 1
        return rows * (2 * spans_in_memory(vocabulary) + sums + results) + 4 * vocabulary
    height, width = block_shape(rows, vocabulary, on_gpu)
    last = vocabulary % width if vocabulary % GROUP else 0
    return height * max(width * BLOCK_BYTES, last * LAST_BYTES)
