"""`report.html`: one self-contained page on one or several runs: results, curves, example sequences, settings."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from fast_electra.files import write_text
from fast_electra.report.curves import draw_panels
from fast_electra.report.example_html import examples_html
from fast_electra.report.tables import events_html, headline, results_html, settings_html, training_html
from fast_electra.settings import UserError
from fast_electra.training.metrics import Row, read_metrics

TITLES = {
    "mlm": "Masked language modelling: the auxiliary model",
    "rtd": "Replaced-token detection: the discriminator",
    "joint": "Joint training: the discriminator and its auxiliary model",
}
CSS = """
:root { --ink: #26261f; --soft: #66665e; --line: #e2e2da; --paper: #fdfdfb; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.35rem; margin: 0; }
h3 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
h1, h2, h3 { font-weight: 600; line-height: 1.25; }
.soft, .count, figcaption, .reading { color: var(--soft); font-size: .875rem; margin: .2rem 0 0; }
section { margin-top: 2.5rem; padding-top: 1.5rem; border-top: 1px solid var(--line); }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .4rem 1rem .4rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 500; white-space: nowrap; } td.figure { font-weight: 600; font-variant-numeric: tabular-nums; }
td.reading { width: 60%; }
.settings { columns: 19rem; column-gap: 2.5rem; font-size: .875rem; }
.settings div { break-inside: avoid; margin-bottom: .8rem; }
.settings h4 { margin: 0 0 .15rem; font-size: .875rem; font-weight: 600; }
.settings dl { margin: 0; display: grid; grid-template-columns: 1fr auto; gap: 0 1rem; }
.settings dt { color: var(--soft); } .settings dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
details { margin-top: .5rem; font-size: .875rem; } summary { cursor: pointer; color: var(--soft); }
pre { overflow-x: auto; background: #f5f5f0; padding: 1rem; border-radius: 4px; font-size: .8rem; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1.5rem 2rem; }
figure { margin: 0; display: flex; flex-direction: column; justify-content: space-between; }
figure b { font-weight: 600; color: var(--ink); } figure svg { width: 100%; height: auto; display: block; }
.summary { padding: 0; list-style: none; margin: 1rem 0 0; } .summary a { color: inherit; font-weight: 600; }
.state { font-size: .875rem; border: 1px solid currentColor; border-radius: 1rem; padding: .05rem .6rem;
  margin-left: .5rem; font-weight: 400; vertical-align: .1em; white-space: nowrap; }
.completed { color: #00664b; } .running { color: #005a8c; } .failed, .interrupted, .unknown { color: #a34700; }
.legend { display: flex; flex-wrap: wrap; gap: .5rem 2rem; font-size: .875rem; line-height: 2.4; margin: 0; }
.examples { padding-left: 1.5rem; } .examples li { padding: .6rem 0; border-bottom: 1px solid var(--line); }
.sequence { line-height: 2.35; margin: 0; overflow-wrap: break-word; font-family: Georgia, "Noto Serif", serif; }
.pair { display: inline-block; white-space: nowrap; margin: 0 1px; } ruby { ruby-align: center; }
rt { font: .68rem/1.25 system-ui, sans-serif; color: var(--soft); }
.found { background: #cdeee2; border-bottom: 3px solid #007a58; padding: 0 .15em; }
.missed { border: 1.5px dashed #b84d00; border-radius: 3px; padding: 0 .15em; }
.alarm { text-decoration: underline wavy #0072b2 1.5px; text-underline-offset: .2em; }
.special, .dim { color: #a0a098; } .special { font: .7rem system-ui, sans-serif; }
@media (max-width: 40rem) {
  tr { display: grid; grid-template-columns: 1fr auto; border-bottom: 1px solid var(--line); padding: .3rem 0; }
  th, td { border: 0; padding: .1rem 0; } td.reading { grid-column: 1 / -1; width: auto; }
}
@media print { body { max-width: none; } .found { print-color-adjust: exact; } figure, li { break-inside: avoid; } }
"""


def write_report(runs: Sequence[Path], output: Path) -> Path:
    """Write one HTML page on the runs, in their order. It refers to nothing outside itself.

    Parts that a run lacks (evaluations, examples, status) are left out or said to be missing.

    Args:
        runs: Run folders, each with a `metrics.jsonl` that has rows.
        output: The page; replaced whole.

    Returns:
        `output`.

    Raises:
        UserError: There is no run, or a run has no update rows.
    """
    if not runs:
        raise UserError("no run folder was given to report on: name at least one")
    parts = [_run_html(Path(run), f"run{index}") for index, run in enumerate(runs)]
    names = ", ".join(Path(run).resolve().name for run in runs)
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>fast_electra: {escape(names)}</title>
<style>{CSS}</style>
</head>
<body>
<h1>fast_electra</h1>
<p class="soft">written {written}</p>
<ul class="summary">
{"".join(summary for summary, _ in parts)}</ul>
{"".join(section for _, section in parts)}
</body>
</html>
"""
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, page)
    return output


def _run_html(run: Path, name: str) -> tuple[str, str]:
    """A run's line in the summary, and its section; `name` is the section's id and begins those within it."""
    updates, evaluations, events = read_metrics(run)
    if not updates:
        raise UserError(
            f"{run / 'metrics.jsonl'} is missing or has no update rows: give the folder of a run that has trained "
            "(`fast_electra.run` in its config)"
        )
    config, status = _read_json(run / "config.json"), _read_json(run / "status.json")
    ours = config.get("fast_electra", {})
    objective = ours.get("objective", "mlm" if "accuracy" in updates[-1] else "rtd")
    parts = [
        f"<h2>{escape(TITLES.get(objective, objective))}</h2>",
        _facts_html(run, status, updates),
        "<h3>Results on held-out documents</h3>",
        results_html(evaluations),
        training_html(updates),
        events_html(events),
        "<h3>Curves</h3>",
        _curves_html(objective if objective in TITLES else "rtd", updates, evaluations, f"{name}-"),
        _examples_html(_read_json(run / "examples.json")),
        "<h3>Settings</h3>",
        settings_html(config),
    ]
    summary = f'<a href="#{name}">{escape(run.resolve().name)}</a> {headline(evaluations)}{_state_html(status)}'
    return f"<li>{summary}</li>\n", f'<section id="{name}">\n' + "\n".join(parts) + "\n</section>\n"


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or {} where the file is missing or broken: an interrupted run still deserves its report."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _state_html(status: dict[str, Any]) -> str:
    state = str(status.get("state", "unknown"))
    kind = state if state in ("completed", "running", "failed", "interrupted") else "unknown"
    return f'<span class="state {kind}">{escape(state)}</span>'


def _facts_html(run: Path, status: dict[str, Any], updates: list[Row]) -> str:
    last = updates[-1]
    facts = [str(run), f"update {last['update']:,} of {last.get('updates', last['update']):,}"]
    if status.get("message"):
        facts.append(str(status["message"]))
    return f'<p class="soft">{escape(" · ".join(facts))}{_state_html(status)}</p>'


def _curves_html(objective: str, updates: list[Row], evaluations: list[Row], prefix: str) -> str:
    figures = [
        f"<figure><figcaption><b>{escape(panel.title)}.</b> {escape(panel.reading)}</figcaption>\n{svg}</figure>"
        for panel, svg in draw_panels(objective, updates, evaluations, prefix)
    ]
    return (
        '<p class="soft">Faint: each update. Strong: running median. Open marks: held-out documents.</p>\n'
        f'<div class="curves">\n{"".join(figures)}\n</div>'
    )


def _examples_html(examples: dict[str, Any]) -> str:
    if not examples.get("sequences"):
        return ""
    at = ""
    for key, symbol in (("temperature", "T"), ("gamma", "γ")):
        if isinstance(value := examples.get(key), int | float):
            at = f" at {symbol} = {value:.3g}"
    return (
        "<h3>Example sequences</h3>\n"
        f'<p class="soft">Corrupted held-out text{at}, judged by the model after update {examples.get("update", "?")}. '
        "Point at a mark for the probability.</p>\n" + examples_html(examples)
    )
