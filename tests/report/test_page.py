"""The report must be one well-formed page that needs nothing else and tells what happened, for broken runs too."""

import io
import json
from pathlib import Path

import pytest
from pages import Page, report, token, train
from rich.console import Console

from fast_electra.report.page import write_report
from fast_electra.settings import UserError
from fast_electra.training.console import Monitor


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


def test_interrupted_run_without_config_evaluations_or_examples_still_gets_its_report(tmp_path: Path) -> None:
    run = train(tmp_path / "r<b>un", 1)
    for name in ("config.json", "status.json"):
        (run / name).unlink()
    (run / "examples.json").write_text('{"sequences": [')  # killed while writing
    page = report(run)
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
    page = report(run)
    assert "10 nonfinite updates in a row" in page.text("p")
    assert "the loss of update 60 is <not> finite" in page.text("td")
    assert "11 earlier ones" in page.text("p")
    drawn = [attributes["aria-label"] for tag, attributes in page.elements if tag == "svg"]
    assert drawn == ["Accuracy at masked positions", "Learning rate and gradient norm", "Speed"]  # no loss to draw


def test_numbers_written_as_integers_are_shown_as_well(tmp_path: Path) -> None:
    run = train(tmp_path / "run", 3)
    with Monitor(run, 3, start=3, console=Console(file=io.StringIO())) as monitor:
        monitor.evaluation({"update": 3, "heldout_auc": 1, "heldout_auc_token_identity": 0, "heldout_tokens": 12345})
    page = report(run)
    assert "held-out AUC 1.000 (the token alone allows 0.000)" in page.text("li")
    assert "12,345" in page.text("td")


def test_a_joint_run_shows_both_losses_and_how_hard_the_replacements_are(tmp_path: Path) -> None:
    both = {"mlm_loss": 5.0, "rtd_loss": 0.4, "accuracy": 0.2, "auc": 0.6}
    hardness = {"replacement_entropy": 3.0, "original_probability": 0.1}
    run = train(tmp_path / "run", 3, "joint", **both, **hardness)
    page = report(run)
    assert "Joint training" in page.text("h2")
    titles = page.text("b")
    readings = page.text("figcaption")
    assert titles.startswith("Losses. How hard the replacements are. Finding the replaced tokens. Accuracy at masked")
    assert "weighted sum" in readings and "As replacements get harder" in readings


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
