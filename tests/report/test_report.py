"""The report must be one well-formed page that needs nothing else and tells what happened, for broken runs too."""

import io
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fast_electra.report.curves import draw_panels, running_median
from fast_electra.report.example_html import examples_html, mark, readable
from fast_electra.report.page import write_report
from fast_electra.settings import UserError
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


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of an auxiliary and a discriminator, as the quickstart writes it."""
    folder = tmp_path_factory.mktemp("quickstart")
    auxiliary = train(folder / "auxiliary", 1500, "mlm", evaluate=500)
    discriminator = train(folder / "discriminator", 1200, evaluate=400)
    tokens = [token("[CLS]"), token("▁Call"), token("▁him", "▁me", 0.9), token("▁Ishmael"), token("."), token("<0x0A>")]
    tokens += [
        token("▁<script>alert(1)</script>", '▁"&', 0.2),
        token("<0xC3>"),
        token("<0xA9>"),
        token("▁sea", None, 0.7),
    ]
    examples = {"update": 1200, "temperature": 1.0, "sequences": [{"tokens": tokens * 50}] * 10}
    (discriminator / "examples.json").write_text(json.dumps(examples))
    output = write_report([auxiliary, discriminator], folder / "deep" / "report.html")
    assert output == folder / "deep" / "report.html"
    assert [path.name for path in output.parent.iterdir()] == ["report.html"]
    return output.read_text(encoding="utf-8")


def test_page_is_well_formed_small_and_needs_nothing_from_outside(quickstart: str) -> None:
    page = Page(quickstart)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "image")
        for name in ("href", "xlink:href", "src"):
            target = attributes.get(name) or "#"
            assert target.startswith("#")
            assert target == "#" or target[1:] in ids
    assert "http" not in quickstart
    assert "@import" not in quickstart
    assert len(quickstart.encode()) < 1_500_000


def test_page_tells_settings_results_status_and_curves_of_each_run_in_order(quickstart: str) -> None:
    page = Page(quickstart)
    headings = page.text("h2")
    assert headings.index("auxiliary") < headings.index("discriminator")
    assert "temperature T" in quickstart and ">gamma<" not in quickstart  # curves that the rows lack are not named
    results = page.text("td", "th")
    for part in ("0.2912", "0.7312", "0.6000", "0.1312", "coin toss"):  # 0.1312: what context adds
        assert part in results
    settings = page.text("dt", "dd")
    for part in ("objective mlm", "objective rtd", "layers 3", "schedule exponential", "optimizer.params.lr 0.003"):
        assert part in settings
    assert "rate" not in settings.split()  # null: not set
    drawn = [attributes["aria-label"] for tag, attributes in page.elements if tag == "svg"]
    assert drawn == [
        *("Loss", "Accuracy at masked positions", "Learning rate and gradient norm", "Speed"),
        *("Loss", "Curriculum and replaced tokens", "Finding the replaced tokens", "Speed"),
        "Learning rate and gradient norm",
    ]
    assert page.text("span").count("completed") == 4  # in the summary and in the section, of both runs
    assert "AUC by token identity" in page.text("text")  # the dashed line's label


def test_examples_mark_found_missed_and_false_alarms_with_originals_and_probabilities(quickstart: str) -> None:
    page = Page(quickstart)
    classes = [attributes.get("class") for _, attributes in page.elements]
    legend = 1
    assert [classes.count(kind) for kind in ("found", "missed", "alarm")] == [500 + legend] * 3
    titles = {attributes["title"] for _, attributes in page.elements if "title" in attributes}
    assert titles == {
        "original '▁me', shown '▁him'; probability of being replaced: 90.0%",
        "original '▁\"&', shown '▁<script>alert(1)</script>'; probability of being replaced: 20.0%",
        "probability of being replaced: 70.0%",
    }
    assert "me" in page.text("rt").split()
    assert "100 of 500 tokens replaced: 50 found, 50 missed; false alarms: 50" in page.text("p")
    text = page.text("p", "span")
    for part in ("Call", "Ishmael.", "¶", "é", "<script>alert(1)</script>"):
        assert part in text
    assert "▁" not in page.text()
    assert "0x" not in page.text()


@pytest.mark.parametrize(
    ("replaced", "probability", "expected"),
    [
        (True, 0.5, "found"), (True, 0.49, "missed"), (True, None, "missed"),
        (False, 0.5, "alarm"), (False, 0.49, ""), (False, None, ""),
    ],
)  # fmt: skip
def test_mark(replaced: bool, probability: float | None, expected: str) -> None:
    assert mark({"piece": "a", "original": "b", "replaced": replaced, "probability": probability}) == expected


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["▁The", "▁wh", "ale"], " The whale"),
        (["▁caf", "<0xC3>", "<0xA9>", "s"], " cafés"),
        (["<0xF0>", "<0x9F>", "<0x90>", "<0x8B>"], "🐋"),
        (["a", "<0xC3>", "b", "<0xA9>"], "a\ufffdb\ufffd"),
        (["<0x0A>", "<0x", "0A>"], "\n<0x0A>"),
        ([], ""),
    ],
)
def test_readable(pieces: list[str], text: str) -> None:
    assert readable(pieces) == text


def test_examples_show_what_cannot_be_seen() -> None:
    tokens = [token("<0xC3>", "<0x0A>", 0.9), token("the", "▁the"), token("▁", "a"), token("[SEP]"), token("[PAD]")]
    text = Page(examples_html({"sequences": [{"tokens": tokens}]})).text("span", "rt")
    for part in ("⟨C3⟩", "¶", "▁the", "␣", "[SEP]"):
        assert part in text
    assert "[PAD]" not in text


def test_interrupted_run_without_config_evaluations_or_examples_still_gets_its_report(tmp_path: Path) -> None:
    run = train(tmp_path / "r<b>un", 1)
    for name in ("config.json", "status.json"):
        (run / name).unlink()
    (run / "examples.json").write_text('{"sequences": [')  # killed while writing
    page = Page(write_report([run], tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "r<b>un" in page.text("a")
    assert "Replaced-token detection" in page.text("h2")
    assert "unknown" in page.text("span")
    assert "no evaluation" in page.text("p")
    assert "config.json is missing" in page.text("p")
    assert "Example sequences" not in page.text("h3")


def test_failed_run_shows_its_message_its_events_and_what_numbers_it_has(tmp_path: Path) -> None:
    run = train(tmp_path / "run", 30, "mlm", loss=float("nan"), gradient_norm=float("inf"))
    with Monitor(run, 100, start=30, console=Console(file=io.StringIO())) as monitor:
        for update in range(31, 61):
            monitor.event(update, "skipped", f"the loss of update {update} is <not> finite")
        monitor.status("failed", 60, "10 nonfinite updates in a row")
    page = Page(write_report([run], tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "10 nonfinite updates in a row" in page.text("p")
    assert "the loss of update 60 is <not> finite" in page.text("td")
    assert "11 earlier ones" in page.text("p")
    drawn = [attributes["aria-label"] for tag, attributes in page.elements if tag == "svg"]
    assert drawn == ["Accuracy at masked positions", "Learning rate and gradient norm", "Speed"]  # no loss to draw


def test_numbers_written_as_integers_are_shown_as_well(tmp_path: Path) -> None:
    run = train(tmp_path / "run", 3)
    with Monitor(run, 3, start=3, console=Console(file=io.StringIO())) as monitor:
        monitor.evaluation({"update": 3, "heldout_auc": 1, "heldout_auc_token_identity": 0, "heldout_tokens": 12345})
    page = Page(write_report([run], tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "held-out AUC 1.000 (the token alone allows 0.000)" in page.text("li")
    assert "12,345" in page.text("td")


def test_without_rows_the_error_names_the_file_and_an_earlier_report_stands(tmp_path: Path) -> None:
    output = write_report([train(tmp_path / "good", 2)], tmp_path / "report.html")
    before = output.read_bytes()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "metrics.jsonl").touch()
    for run in ("missing", "empty"):
        with pytest.raises(UserError, match=f"{run}/metrics.jsonl .* give the folder of a run"):
            write_report([tmp_path / run], output)
    with pytest.raises(UserError, match="name at least one"):
        write_report([], output)
    assert output.read_bytes() == before


def test_a_long_run_is_drawn_small_and_keeps_its_spike() -> None:
    rows = [{"update": update, "loss": 0.3 + 0.001 * (update % 7)} for update in range(1, 20001)]
    ((_, calm),) = draw_panels("rtd", rows, [], "a-")
    rows[12345]["loss"] = 9.0
    ((_, spiked),) = draw_panels("rtd", rows, [], "a-")
    assert len(calm) < 100_000
    labels = Page(spiked).text("text").split()
    assert "8" in labels  # the axis reaches to the one high value
    assert "8" not in Page(calm).text("text").split()


def test_running_median_ignores_a_spike_and_follows_a_level() -> None:
    values = np.concatenate([np.zeros(50), np.ones(50)])
    values[20] = 1e9
    smooth = running_median(values)
    assert smooth.shape == values.shape
    assert set(smooth[:45]) == {0.0}
    assert set(smooth[55:]) == {1.0}
    assert list(running_median(np.array([3.0]))) == [3.0]
