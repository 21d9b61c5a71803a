"""Comparison of variants over seeds: figures, paired differences, and the tables of docs/results.md."""

import re
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

Result = dict[str, Any]
REFERENCE = "fast"  # what every variant is compared with
CONFIDENCE = 0.95


class Measure(NamedTuple):
    """A key of the scores, the label of its axis in a plot, and the head of its column in a table."""

    key: str
    axis: str
    head: str


MEASURES = (
    Measure("swap_auc", "swap probe, AUC (more is better)", "swap, AUC ↑"),
    Measure("cloze_nats", "cloze probe, nats (less is better)", "cloze, nats ↓"),
    Measure("judge_auc", "common judge, AUC (more is better)", "judge, AUC ↑"),
)
LABELS = {
    "fast": "Fast-ELECTRA",
    "joint": "joint, half the rate",
    "joint_same_rate": "joint, same rate",
    "uniform": "uniform",
    "term_frequency": "term frequency",
    "smoothed_one_hot": "smoothed one-hot",
    "uniform_to_smoothed_one_hot": "UNF→SOH",
    "term_frequency_to_smoothed_one_hot": "TF→SOH",
    "fixed": "fixed auxiliary",
    "fast_deep": "Fast-ELECTRA, auxiliary of 3 layers",
    "fixed_deep": "fixed auxiliary of 3 layers",
    "term_frequency_interpolation": "TF interpolation",
    "dropout": "dropout",
    "attention_dropout": "attention dropout",
    "drop_token": "drop token",
    "polynomial": "polynomial, 2",
    "stepwise": "stepwise, 4",
    "constant": "constant, T = 2",
    "untrained": "untrained",
    "auxiliary_1": "auxiliary, 1 layer (an MLM)",
    "auxiliary_3": "auxiliary, 3 layers (an MLM)",
}
METHODS = {"fast": "Fast-ELECTRA", "fixed": "fixed auxiliary", "joint": "joint"}  # the lines of a sweep
GROUPS = {
    "distributions": (
        "fast",
        "joint",
        "joint_same_rate",
        "uniform",
        "term_frequency",
        "smoothed_one_hot",
        "uniform_to_smoothed_one_hot",
        "term_frequency_to_smoothed_one_hot",
    ),
    "auxiliaries": ("fast", "fixed", "fast_deep", "fixed_deep"),
    "augmentations": ("fast", "term_frequency_interpolation", "dropout", "attention_dropout", "drop_token"),
    "schedules": ("fast", "polynomial", "stepwise", "constant", "fixed"),
}
# MNLI accuracy where the paper prints it (Table 6, D.2), otherwise what its text says about the figure (E.2).
PAPER = {
    "fast": "89.1",
    "uniform": "diverged",
    "term_frequency": "85.7",
    "smoothed_one_hot": "83.8",
    "uniform_to_smoothed_one_hot": "85.3",
    "term_frequency_to_smoothed_one_hot": "84.9",
    "fixed": "88.3, 88.4",
    "fixed_deep": "over 3 points below",
    "term_frequency_interpolation": "slightly lower",
    "dropout": "slightly lower",
    "attention_dropout": "slightly lower",
    "drop_token": "slightly lower",
    "polynomial": "comparable",
    "stepwise": "comparable",
    "constant": "significantly lower",
}


class Difference(NamedTuple):
    """A variant's mean difference from the reference over seeds, and half the width of its t-interval."""

    mean: float
    half: float

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero."""
        return abs(self.mean) > self.half


# --- figures over seeds -----------------------------------------------------------------------------------------------


def values(result: Result, name: str, key: str, update: int | None = None) -> np.ndarray:
    """Return one figure of a variant or reference for each seed, in the order of the seeds.

    Args:
        result: what curricula.py has written.
        name: the variant, or one of the models that are scored next to the variants.
        key: the figure.
        update: when it was measured; by default at the end.

    Returns:
        float64 [seeds]; NaN if the model has no such figure.
    """
    by_seed = result["scores"].get(name) or result["references"][name]
    rows = [by_seed[seed] for seed in sorted(by_seed, key=int)]
    if name in result["scores"]:
        rows = [row[str(update or result["updates"])] for row in rows]
    return np.array([row.get(key, np.nan) for row in rows], dtype=np.float64)


def difference(result: Result, name: str, key: str, reference: str = REFERENCE) -> Difference:
    """Return the difference of a variant from the reference.

    Runs with the same seed form a pair, because they share initial weights, order, masks and auxiliary.
    """
    pairs = values(result, name, key) - values(result, reference, key)
    n = len(pairs)
    if n < 2:
        return Difference(float(pairs.mean()), float("inf"))
    half = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * pairs.std(ddof=1) / np.sqrt(n)
    return Difference(float(pairs.mean()), float(half))


def threshold(result: Result, key: str) -> float:
    """Return the difference of means that chance alone exceeds in any comparison of the study once in 20 studies.

    This is Bonferroni's correction over every variant and measure. The spread is pooled over the variants, as if it
    were the same for all of them. It is the spread of what remains of each figure after the mean of its variant and
    the mean of its seed are subtracted.
    """
    figures = np.array([values(result, name, key) for name in result["scores"]])
    variants, seeds = figures.shape
    if seeds < 2:
        return float("inf")
    residuals = figures - figures.mean(1, keepdims=True) - figures.mean(0, keepdims=True) + figures.mean()
    freedom = (variants - 1) * (seeds - 1)
    spread = np.sqrt(np.square(residuals).sum() / freedom)
    comparisons = (variants - 1) * len(MEASURES)
    return float(stats.t.isf((1 - CONFIDENCE) / 2 / comparisons, freedom) * spread * np.sqrt(2 / seeds))


# --- tables -----------------------------------------------------------------------------------------------------------


def table(result: Result, variants: tuple[str, ...]) -> str:
    """Return a Markdown table of variants: mean, standard deviation, and the difference from the reference.

    The column `entropy` is the entropy of the replacements on held-out text at the end of training, in nats. It says
    how easy the task is then.
    """
    heads = [cell for measure in MEASURES for cell in (measure.head, "− fast")]
    lines = [_row(["", *heads, "entropy", "the paper, MNLI"]), _row(["---"] * (3 + len(heads)))]
    for variant in variants:
        cells = [f"**{LABELS[variant]}**" if variant == REFERENCE else LABELS[variant]]
        for measure in MEASURES:
            cells += [_spread(result, variant, measure.key), _compared(result, variant, measure.key)]
        rows = result["own_task"][variant].values()
        entropy = np.mean([row["heldout_replacement_entropy"] for row in rows])
        lines.append(_row([*cells, f"{entropy:.2f}", PAPER.get(variant, "–")]))
    return "\n".join(lines)


def reference_table(result: Result) -> str:
    """Return a Markdown table of the models that saw no replacement in training, and of what needs no model."""
    lines = [_row(["", *(measure.head for measure in MEASURES)]), _row(["---"] * (1 + len(MEASURES)))]
    for name in result["references"]:
        lines.append(_row([LABELS[name], *(_spread(result, name, measure.key) for measure in MEASURES)]))
    known = result["without_a_model"]
    bare = ["0.500", f"{known['cloze_nats']:.3f}", f"{known['judge_auc']:.3f}"]
    return "\n".join([*lines, _row(["no model: chance, token frequency, the token alone", *bare])])


def sweep_table(result: Result, lines: dict[str, dict[float, str]]) -> str:
    """Return a Markdown table of the lines of a sweep: differences are from the method's default, seed by seed.

    A run uses no context if its AUC against the judge is not above the best that the token alone allows. Below each
    line is the range of its means, and behind it the standard deviation of one seed, pooled over the line.
    """
    heads = [cell for measure in MEASURES for cell in (measure.head, "− default")]
    end = ["auxiliary's accuracy", "went wrong"]
    table_rows = [_row(["", *heads, *end]), _row(["---"] * (1 + len(heads) + len(end)))]
    for method, line in lines.items():
        for value, name in line.items():
            cells = [f"{METHODS[method]}, {value:g}"]
            for measure in MEASURES:
                found = difference(result, name, measure.key, method)
                cells += [_spread(result, name, measure.key), "" if name == method else _signed(found)]
            runs = result["runs"][name].values()
            known = [run["auxiliary_accuracy"] for run in runs if run["auxiliary_accuracy"] is not None]
            skipped, diverged = (sum(run[key] for run in runs) for key in ("skipped", "diverged"))
            deaf = int((values(result, name, "judge_auc") <= result["without_a_model"]["judge_auc"]).sum())
            counts = {"updates skipped": skipped, "runs diverged": diverged, "runs use no context": deaf}
            wrong = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
            table_rows.append(_row([*cells, f"{np.mean(known):.2f}" if known else "–", wrong or "–"]))
        cells = [f"*{METHODS[method]}: range (spread of a seed)*"]
        for measure in MEASURES:
            figures = np.array([values(result, name, measure.key) for name in line.values()])
            figures = figures[~np.isnan(figures).any(1)]  # without settings that diverged
            spread = np.sqrt(figures.var(1, ddof=1).mean()) if figures.shape[1] > 1 else np.nan
            cells += [f"{np.ptp(figures.mean(1)):.3f} ({spread:.3f})", ""]
        table_rows.append(_row([*cells, "", ""]))
    return "\n".join(table_rows)


def task_table(tasks: dict[str, dict[str, list[float]]]) -> str:
    """Return a Markdown table of test scores after fine-tuning: mean and standard deviation over its seeds."""
    lines = [_row(["", *tasks]), _row(["---"] * (1 + len(tasks)))]
    for name in next(iter(tasks.values())):
        label = "random weights" if name == "random" else METHODS[name.partition("-")[0]]
        found = [scores[name] for scores in tasks.values()]
        lines.append(_row([label, *(f"{np.mean(seeds):.3f} ± {np.std(seeds, ddof=1):.3f}" for seeds in found)]))
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _spread(result: Result, name: str, key: str) -> str:
    figures = values(result, name, key)
    if np.isnan(figures).any():
        return "–"
    return f"{figures.mean():.3f}" + (f" ± {figures.std(ddof=1):.3f}" if len(figures) > 1 else "")


def _compared(result: Result, name: str, key: str) -> str:
    """Return a variant's difference: bold if the interval excludes zero, a dagger if it exceeds the threshold."""
    if name == REFERENCE:
        return ""
    found = difference(result, name, key)
    return _signed(found) + " †" * (abs(found.mean) > threshold(result, key))


def _signed(found: Difference) -> str:
    mean, half = found
    if np.isnan(mean):
        return "–"
    shown = (f"{mean:+.3f}" + (f" ± {half:.3f}" if np.isfinite(half) else "")).replace("-", "−")
    return f"**{shown}**" if found.clear else shown


def put(text: str, name: str, content: str) -> str:
    """Return the text with the table `name` replaced.

    Raises:
        ValueError: the text has no place for the table.
    """
    begin, end = f"<!-- table: {name} -->", "<!-- end of table -->"
    pattern = re.compile(rf"({re.escape(begin)}\n).*?({re.escape(end)})", flags=re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the text has no place for the table {name!r}: add the lines {begin} and {end}")
    return pattern.sub(lambda match: f"{match[1]}{content}\n{match[2]}", text)
