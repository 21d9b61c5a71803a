"""How much sampling holds at a time, instead of all logits."""

from fast_electra_kernels.noise import GROUP

# `blocked`: logits of one block, and rows that it has at most. On a CPU a block stays in the outer cache; on a GPU
# blocks are larger, because each one is some dozens of launches.
BLOCK_CPU, BLOCK_GPU = 1 << 20, 1 << 25
ROWS_CPU, ROWS_GPU = 1 << 10, 1 << 13
# Of a logit, in float32: itself or its exponential, its distance from the highest one, their product; and a copy, where
# the last tokens do not fill a group.
BLOCK_BYTES, LAST_BYTES = 12, 16

# `triton`: tokens of which one highest score is kept, in 16 bits.
SPAN = 64


def ceil_div(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)


def block_shape(rows: int, vocabulary: int, on_gpu: bool) -> tuple[int, int]:
    """Rows and tokens of a block of logits: rows in equal parts, tokens in whole groups."""
    size, most = (BLOCK_GPU, ROWS_GPU) if on_gpu else (BLOCK_CPU, ROWS_CPU)
    height = ceil_div(rows, ceil_div(rows, most)) if rows else 1
    parts = max(1, round(height * vocabulary / size))
    return height, ceil_div(vocabulary, parts * GROUP) * GROUP


def most_chunks(row_blocks: int, processors: int = 132) -> int:
    """Parts of the vocabulary that `triton` may work on apart, each with sums of its own for every row.

    Few where there are many rows, whose sums take memory; enough to employ all processors where there are few.
    """
    return max(10, 2 * processors // row_blocks)


def workspace_bytes(rows: int, vocabulary: int, impl: str, on_gpu: bool) -> int:
    """Bytes that an implementation allocates beside its arguments, its results included."""
    if impl == "triton":
        sums, results = 3 * 4 * most_chunks(ceil_div(rows, 128)), 3 * 4 + 8 + 1
        return rows * (2 * ceil_div(vocabulary, SPAN) + sums + results) + 4 * vocabulary
    height, width = block_shape(rows, vocabulary, on_gpu)
    last = vocabulary % width if vocabulary % GROUP else 0
    return height * max(width * BLOCK_BYTES, last * LAST_BYTES)
