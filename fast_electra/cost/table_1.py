"""Table 1 of the paper, by the paper's conventions (docs/cost.md). They give each figure to the printed digit.

FLOPs are those of one *sequence*, and training is three forward passes. Bytes are those of a whole batch on one device.
Parameters are counted exactly, on our models. A run does other things: see `fast_electra.cost.estimate` for them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from fast_electra.cost.methods import embedding_parameters, parameters
from fast_electra.cost.tables import row
from fast_electra.model.encoder import EncoderSettings

LENGTH, BATCH = 512, 2048  # Table 3
TRAINED_BYTES, FROZEN_BYTES = 20, 2  # of a parameter (Smith et al., 2022)
ACTIVATION_BYTES = 2  # of a number between the layers
PARTS = ("main", "auxiliary", "total")
# As the paper prints them: main, auxiliary and total, first of FLOPs, then of bytes.
DIGITS = {"original": (1, 1, 1, 1, 1, 1), "fast": (1, 1, 1, 1, 2, 1), "ratio": (1, 2, 2, 1, 2, 2)}


class Models(NamedTuple):
    """The sizes of two models: a row of Table 2."""

    main: EncoderSettings
    auxiliary: EncoderSettings


def forward_flops(settings: EncoderSettings) -> int:
    """Return the FLOPs of a forward pass over one sequence, after Hoffmann et al. (2022).

    The embedding counts as a product with the whole vocabulary at every position, and no head counts.
    """
    s, d = LENGTH, settings.hidden_size
    layer = 8 * s * d**2 + 4 * s**2 * d + 4 * s * d * settings.ffn_size
    return 2 * s * settings.vocabulary_size * d + settings.layers * layer


def activation_bytes(settings: EncoderSettings) -> int:
    """Return the bytes of a batch's hidden states between the layers."""
    return settings.layers * BATCH * LENGTH * settings.hidden_size * ACTIVATION_BYTES


def table_1(models: dict[str, Models]) -> list[dict[str, Any]]:
    """Return two rows for each model, unrounded.

    A row is {"model", "method", "gflops": {"main", "auxiliary", "total"}, "gigabytes": {the same keys}}.
    """
    rows = []
    for name, (main, auxiliary) in models.items():
        main_bytes = TRAINED_BYTES * parameters(main, "rtd") + activation_bytes(main)
        own = parameters(auxiliary, "mlm") - embedding_parameters(auxiliary)  # the original shares the embedding
        costs = {
            "original": (3 * forward_flops(auxiliary), TRAINED_BYTES * own + activation_bytes(auxiliary)),
            "fast": (forward_flops(auxiliary), FROZEN_BYTES * parameters(auxiliary, "mlm")),
        }
        for method, (flops, size) in costs.items():
            gflops, gigabytes = _parts(3 * forward_flops(main), flops), _parts(main_bytes, size)
            rows.append({"model": name, "method": method, "gflops": gflops, "gigabytes": gigabytes})
    return rows


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return Fast-ELECTRA's share of the original's cost: a row for each model, with the keys of `table_1`."""
    return [
        {"model": original["model"]}
        | {key: {part: fast[key][part] / original[key][part] for part in PARTS} for key in ("gflops", "gigabytes")}
        for original, fast in zip(rows[::2], rows[1::2], strict=True)
    ]


def table_1_text(rows: list[dict[str, Any]]) -> str:
    """Return the table with as many digits as the paper prints."""
    lines = [
        f"Table 1 of the paper, by its own conventions: FLOPs of one sequence, memory of a batch of {BATCH:,}",
        "",
        row("", ["computation (GFLOPs)"], 16, 33) + row("", ["memory (GB)"], 4, 33),
        _line(f"{'model':7}method", PARTS * 2),
    ]
    for by_method in zip(rows[::2], rows[1::2], ratios(rows), strict=True):
        for own, (method, digits) in zip(by_method, DIGITS.items(), strict=True):
            values = [*own["gflops"].values(), *own["gigabytes"].values()]
            figures = [f"{value:.{digit}f}" for value, digit in zip(values, digits, strict=True)]
            lines.append(_line(f"{own['model'] if method == 'original' else '':7}{method}", figures))
    return "\n".join(lines)


def _line(name: str, columns: Sequence[str]) -> str:
    return row(name, columns[:3], 16, 11) + row("", columns[3:], 4, 11)


def _parts(main: float, auxiliary: float) -> dict[str, float]:
    """Return the three columns, in units of 1e9."""
    return {"main": main / 1e9, "auxiliary": auxiliary / 1e9, "total": (main + auxiliary) / 1e9}
