"""Runs to report on, and pages taken apart."""

import io
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from rich.console import Console

from fast_electra.report.page import write_report
from fast_electra.training.console import Monitor


class Page(HTMLParser):
    """A page taken apart; every element must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []  # (the innermost element, its text)
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def text(self, *tags: str) -> str:
        return " ".join(text for tag, text in self.texts if (tag in tags if tags else tag != "style"))


def token(piece: str, original: str | None = None, probability: float | None = 0.1) -> dict[str, Any]:
    replaced = original is not None
    return {"piece": piece, "original": original or piece, "replaced": replaced, "probability": probability}


def train(run: Path, updates: int, objective: str = "rtd", evaluate: int = 0, **values: Any) -> Path:
    """Make a run folder as training makes it, through the monitor."""
    ours = {"objective": objective, "recipe": "tiny", "updates": updates, "model": {"layers": 3, "hidden": 128}}
    ours["curriculum"] = {"schedule": "exponential", "initial": 2.0, "rate": None}
    config = {"fast_electra": ours, "deepspeed": {"train_batch_size": 32, "optimizer": {"params": {"lr": 0.003}}}}
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(config))
    with Monitor(run, updates, console=Console(file=io.StringIO())) as monitor:
        for update in range(1, updates + 1):
            row = {"update": update, "updates": updates, "loss": 0.3 + 0.01 * math.sin(update), "tokens": 2048}
            row |= {"learning_rate": 1e-3, "gradient_norm": 1.5, "tokens_per_second": 41203.0, "seconds": update * 0.05}
            rtd = {"temperature": 1.4, "replaced_fraction": 0.12, "recall": 0.2, "precision": 0.6, "auc": 0.7}
            monitor.rows([row | (rtd if objective == "rtd" else {"accuracy": 0.25}) | values])
            if evaluate and update % evaluate == 0:
                held = {"heldout_auc": 0.7312, "heldout_auc_token_identity": 0.6, "heldout_recall": 0.2}
                held = held if objective == "rtd" else {"heldout_mlm_accuracy": 0.2912}
                monitor.evaluation({"update": update, "heldout_loss": 0.31, **held})
        monitor.status("completed", updates)
    return run


def report(*runs: Path) -> Page:
    """Write the report of runs beside the last one, and take it apart."""
    return Page(write_report(runs, runs[-1].with_name("report.html")).read_text(encoding="utf-8"))
