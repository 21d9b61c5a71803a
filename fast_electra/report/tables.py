"""The tables of `report.html`: held-out results with how to read them, events, and the settings that matter."""

import json
from collections.abc import Iterator
from html import escape
from statistics import median
from typing import Any

from fast_electra.training.metrics import SHOWN, Row, duration

# Of DeepSpeed's part of the config, what a reader of a report asks for; the rest is in the full config.
DEEPSPEED_SETTINGS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer.type",
    "optimizer.params.lr",
    "optimizer.params.weight_decay",
    "scheduler.type",
    "scheduler.params.warmup_num_steps",
    "zero_optimization.stage",
    "bf16.enabled",
    "fp16.enabled",
)
# An evaluation row's keys: the name shown, and how to read the figure.
RESULTS = {
    "heldout_auc": (
        "AUC for “replaced”",
        "The chance that a replaced token gets a higher probability than an original one: 0.5 is a coin toss, "
        "1 is perfect.",
    ),
    "heldout_auc_token_identity": (
        "AUC by token identity alone",
        "The best AUC open to a reader who sees each token without its context.",
    ),
    "auc_from_context": (
        "AUC gained from context",
        "The difference of the two: what the model has learnt about how tokens fit together.",
    ),
    "heldout_recall": (
        "Recall",
        "Of the tokens that were replaced, the share that the model calls replaced (probability of at least 0.5).",
    ),
    "heldout_precision": ("Precision", "Of the tokens that the model calls replaced, the share that really was."),
    "heldout_mlm_accuracy": (
        "Accuracy at masked positions",
        "How often the first choice of the masked language model (the auxiliary) is the token that stood there.",
    ),
    "heldout_loss": (
        "Loss",
        "The training objective, on documents that no model saw.",
    ),
    "heldout_replaced_fraction": ("Replaced tokens", "Of all tokens; lucky guesses of the original are not counted."),
    "heldout_replacement_entropy": (
        "Entropy of the replacements",
        "How undecided the distribution is from which they are drawn, in nats.",
    ),
    "heldout_original_probability": (
        "Probability of the original",
        "What that distribution gives to the token that stood at a masked position: the lucky guesses.",
    ),
    "temperature": ("Temperature T", "At which the held-out documents were corrupted."),
    "gamma": ("Gamma", "The augmentation's strength, at which the held-out documents were corrupted."),
}
NOT_RESULTS = ("update", "updates", "evaluation")
EVENTS_SHOWN = 20


def headline(evaluations: list[Row]) -> str:
    """The one result that a run is judged by, in words; empty without an evaluation."""
    row = evaluations[-1] if evaluations else {}
    if isinstance(row.get("heldout_auc"), int | float):
        identity = row.get("heldout_auc_token_identity")
        alone = f" (the token alone allows {identity:.3f})" if isinstance(identity, int | float) else ""
        return f"held-out AUC {row['heldout_auc']:.3f}{alone}"
    if isinstance(row.get("heldout_mlm_accuracy"), int | float):
        return f"held-out accuracy {row['heldout_mlm_accuracy']:.1%}"
    return ""


def results_html(evaluations: list[Row]) -> str:
    """The last evaluation as a table: name, figure, how to read it. A key without a reading is shown all the same."""
    if not evaluations:
        return "<p>None yet: the run has made no evaluation.</p>"
    row = evaluations[-1]
    auc, identity = row.get("heldout_auc"), row.get("heldout_auc_token_identity")
    if isinstance(auc, int | float) and isinstance(identity, int | float):
        row = {**row, "auc_from_context": auc - identity}
    others = [key for key in row if key not in RESULTS and key not in NOT_RESULTS]
    lines = []
    for key in [*(key for key in RESULTS if key in row), *others]:
        name, reading = RESULTS.get(key, (key.removeprefix("heldout_").replace("_", " "), ""))
        lines.append(
            f'<tr><th>{escape(name)}</th><td class="figure">{_figure(row[key])}</td>'
            f'<td class="reading">{escape(reading)}</td></tr>'
        )
    return f'<table>\n{"".join(lines)}\n</table>\n<p class="soft">After update {row["update"]:,}.</p>'


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.3g}"
    return "–" if value is None else escape(f"{value:,}" if type(value) is int else str(value))


def training_html(updates: list[Row]) -> str:
    """A line on where training stands: medians of its last rows, and what it has cost so far."""
    last, facts = updates[-50:], []
    for key, name, form, _ in (*SHOWN, ("tokens_per_second", "tokens/s", "{:,.0f}", 0)):
        numbers = _numbers(last, key)
        if numbers:
            facts.append(f"{name} {form.format(median(numbers))}")
    timed = [row for row in updates if row.get("tokens") and row.get("tokens_per_second")]
    tokens, seconds = sum(_numbers(updates, "tokens")), sum(row["tokens"] / row["tokens_per_second"] for row in timed)
    cost = f" So far {tokens:,} tokens in {duration(seconds)} of updates." if timed else ""
    return f'<p class="soft">Training (median of the last {len(last)}): {", ".join(facts)}.{cost}</p>'


def _numbers(rows: list[Row], key: str) -> list[float]:
    return [row[key] for row in rows if isinstance(row.get(key), int | float)]


def events_html(events: list[Row]) -> str:
    """The last events (skipped updates, resumptions), or nothing where there are none."""
    if not events:
        return ""
    lines = [
        f"<tr><th>update {event['update']:,}</th><td>{escape(str(event['event']))}</td>"
        f'<td class="reading">{escape(str(event.get("message", "")))}</td></tr>'
        for event in events[-EVENTS_SHOWN:]
    ]
    hidden = len(events) - len(lines)
    more = f'<p class="soft">{hidden:,} earlier ones are in metrics.jsonl.</p>' if hidden else ""
    return f"<h3>Events</h3>\n<table>\n{''.join(lines)}\n</table>\n{more}"


def settings_html(config: dict[str, Any]) -> str:
    """Every setting of ours that has a value, by group, and DeepSpeed's main ones; the whole config folded away."""
    if not config:
        return "<p>config.json is missing or cannot be read.</p>"
    groups: dict[str, dict[str, Any]] = {}
    for path, value in _scalars(config.get("fast_electra", {})):
        group, _, name = path.rpartition(".")
        groups.setdefault(group or "run", {})[name] = value
    deepspeed = dict(_scalars(config.get("deepspeed", {})))
    groups["deepspeed"] = {key: deepspeed[key] for key in DEEPSPEED_SETTINGS if key in deepspeed}
    cards = [
        f"<div><h4>{escape(group)}</h4><dl>"
        + "".join(f"<dt>{escape(name)}</dt><dd>{_setting(value)}</dd>" for name, value in values.items())
        + "</dl></div>"
        for group, values in groups.items()
        if values
    ]
    full = escape(json.dumps(config, indent=2, ensure_ascii=False))
    return (
        f'<div class="settings">\n{"".join(cards)}\n</div>\n'
        f"<details><summary>Full configuration</summary><pre>{full}</pre></details>"
    )


def _scalars(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of each leaf that has a value, those of a level before those of the levels below it."""
    for key, value in tree.items():
        if not isinstance(value, dict) and value is not None:
            yield prefix + key, value
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{key}.")


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    return escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
