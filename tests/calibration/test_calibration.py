"""Calibration recovers a curriculum that is known, from statistics that agree with their definition."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Corpus

from fast_electra.calibration import calibrate, fit
from fast_electra.calibration.fit import Reference, open_reference
from fast_electra.cli import main
from fast_electra.config import RunConfig, load
from fast_electra.corpus.frequency import token_counts
from fast_electra.corruption import corrupt
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.files import save_model
from fast_electra.model.heads import MaskedLanguageModel
from fast_electra.parts import masking, open_run_corpus
from fast_electra.replacement.auxiliary import Temperature
from fast_electra.settings import UserError
from fast_electra.training.loop import evaluation_batch

SIZES = {"vocabulary_size": 1000, "layers": 1, "hidden_size": 32, "ffn_size": 64, "heads": 2}
Row = dict[str, Any]


def main_config(corpus: Corpus, auxiliary: Path) -> dict[str, Any]:
    section = {
        "objective": "rtd",
        "recipe": "tiny",
        "run": "unused",
        "updates": 100,
        "model": SIZES,
        "corpus": {"shards": str(corpus.shards), "tokenizer": str(corpus.tokenizer), "sequence_length": 32},
        "auxiliary": {"run": str(auxiliary), "dtype": "fp32"},
    }
    adam = {"type": "Adam", "params": {"lr": 1e-3}}
    return {"train_batch_size": 8, "optimizer": adam, "zero_optimization": {"stage": 2}, "fast_electra": section}


@pytest.fixture(scope="module")
def config(tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A config file, beside the run folder of its auxiliary, which knows how frequent tokens are: its bias is log p_TF.

    Its hidden states are those of random weights: the logits still differ from position to position.
    """
    folder = tmp_path_factory.mktemp("calibration")
    path = folder / "config.json"
    path.write_text(json.dumps(main_config(tiny_corpus, folder / "auxiliary")))
    corpus = open_run_corpus(load(path).run)
    settings = EncoderSettings(**SIZES, initial_std=0.1)
    model = MaskedLanguageModel(settings)
    with torch.no_grad():
        model.bias.copy_((token_counts(corpus.train.shards, 1000) + 1.0).log())
    tokenizer = corpus.tokenizer.hash
    save_model(folder / "auxiliary" / "model", "mlm", settings, model.state_dict(), tokenizer=tokenizer)
    return str(path)


@pytest.fixture(scope="module")
def response(config: str) -> fit.Response:
    run = load(config).run
    corpus = open_run_corpus(run)
    model = calibrate.open_auxiliary(run, corpus).model
    found, sample = calibrate.measure(run, corpus, model, 64)
    assert sample.source == "heldout" and sample.sequences == 64
    return found


def reference_run(folder: Path, rows: list[Row], objective: str = "joint") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    section = {
        "objective": objective,
        "recipe": "tiny",
        "seed": 0,
        "updates": 100,
        "corpus": {"sequence_length": 32},
        "model": SIZES,
        "joint": {"auxiliary_layers": 1} if objective == "joint" else None,
    }
    settled = {"fast_electra": section, "deepspeed": {"train_batch_size": 8}, "corpus_hash": "0" * 64}
    (folder / "config.json").write_text(json.dumps(settled))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def rows_of(response: fit.Response, initial: float, rate: float, updates: int = 1000) -> Iterator[Row]:
    """What a run of this auxiliary under T0 and tau would log, without the noise of its batches."""
    u = np.arange(1, updates + 1) / updates
    replaced, entropy = response.at(fit.temperatures(u, initial, rate))
    for update in range(1, updates + 1):
        yield {
            "update": update,
            "updates": updates,
            "original_probability": 1.0 - replaced[update - 1],
            "replacement_entropy": entropy[update - 1] * math.log(1000),
        }


def test_statistics_agree_with_a_dense_softmax() -> None:
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(150, 16), torch.randn(5000, 16), torch.randn(5000)
    original = torch.randint(5000, (150,))
    temperatures = np.array([1.0, 1.7, 4.0, 10.0])
    sums = fit.statistics(hidden, weight, bias, original, temperatures)
    logits = hidden.double() @ weight.double().T + bias.double()
    for k, temperature in enumerate(temperatures):
        p = (logits / temperature).softmax(1)
        assert float(sums[0, k]) == pytest.approx(float(p[range(150), original].sum()), rel=1e-5)
        assert float(sums[1, k]) == pytest.approx(float(-(p * p.log()).sum()), rel=1e-5)


def test_response_is_that_of_training_and_rises_with_the_temperature(config: str, response: fit.Response) -> None:
    """Between the measured temperatures too: against the figures that a run logs, from the sampler itself."""
    run = load(config).run
    corpus = open_run_corpus(run)
    assert corpus.heldout is not None
    model = calibrate.open_auxiliary(run, corpus).model
    auxiliary = Temperature(model.eval(), unk_id=1)
    batch = evaluation_batch(corpus.heldout, "heldout", torch.arange(64), run.seed)
    for temperature in (1.0, 1.31, 2.0, 5.5, fit.HIGHEST):
        draws = corrupt(batch, masking(run, corpus.tokenizer), auxiliary, temperature).draws
        assert draws.original_probability_M is not None and draws.entropy_M is not None
        replaced, entropy = response.at(np.array([temperature]))[:, 0]
        assert replaced == pytest.approx(1.0 - float(draws.original_probability_M.mean()), abs=5e-5)
        assert entropy == pytest.approx(float(draws.entropy_M.mean()) / math.log(1000), abs=5e-5)
    grid = response.at(np.linspace(1.0, fit.HIGHEST, 500))
    assert (np.diff(grid[1]) > 0).all()
    assert (np.diff(grid[0]) > 0).all()


@pytest.mark.parametrize(("initial", "rate"), [(1.7, 0.3), (4.0, 0.05)])
def test_known_curriculum_is_recovered_from_a_log(
    initial: float, rate: float, response: fit.Response, config: str, tmp_path: Path
) -> None:
    """From averages over parts of u, to within 2% (of T0 - 1 and of tau), and without a residual to speak of."""
    reference = open_reference(str(reference_run(tmp_path / "run", list(rows_of(response, initial, rate)))))
    found = calibrate.calibrate(config, [], None, reference, "level", 64)
    assert found.initial - 1 == pytest.approx(initial - 1, rel=0.02)
    assert found.rate == pytest.approx(rate, rel=0.02)
    assert max(found.residuals(found.initial, found.rate).values()) < 2e-3
    assert found.residuals(*calibrate.PAPER)["entropy"] > 5e-3


def test_shape_is_recovered_from_a_reference_that_knows_less(response: fit.Response) -> None:
    """One that knows 75% of what this model does, all the way: its own level would never fall to T = 1."""
    u = np.linspace(0.02, 1.0, 50)
    knowing_less = 1.0 - 0.75 * (1.0 - response.at(fit.temperatures(u, 1.7, 0.15)))
    reference = Reference(u, knowing_less, "less", {})
    shape = fit.target(reference, response, "shape")
    initial, rate = fit.fit(response, u, shape)
    assert initial == pytest.approx(1.7, abs=0.02)
    assert rate == pytest.approx(0.15, rel=0.02)
    level = fit.target(reference, response, "level")
    assert fit.best_temperatures(response, level)[-1] > 1.1
    assert fit.fit(response, u, level)[1] > 0.5  # the level lets it fall to the end of the run


def test_log_with_gaps_and_resumed_rows(response: fit.Response, tmp_path: Path) -> None:
    """Rows of a lost end are superseded, missing and null ones left out, a half line skipped; the curve is the same."""
    rows = list(rows_of(response, 1.7, 0.3))
    whole = open_reference(str(reference_run(tmp_path / "whole", rows)))
    lost = [row | {"original_probability": 0.9} for row in rows[400:450]]
    unknown = [{**rows[700], "original_probability": None, "replacement_entropy": None}]
    resumed = {"update": 400, "updates": 1000, "event": "resumed", "message": ""}
    evaluation = {"update": 1000, "updates": 1000, "evaluation": True, "heldout_auc": 0.7}
    kept = [*rows[:200], *rows[203:400], *lost, resumed, *rows[400:700], *unknown, *rows[701:], evaluation]
    folder = reference_run(tmp_path / "resumed", kept)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"update": 1000, "orig')
    again = open_reference(str(folder / "metrics.jsonl"))
    np.testing.assert_allclose(again.curve_2P, whole.curve_2P, atol=1e-3)
    np.testing.assert_allclose(whole.u_P, (np.arange(40) + 0.5) / 40, atol=1e-3)


def test_command_writes_what_it_promises(
    config: str, response: fit.Response, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A saved reference gives the same proposal as the run that it was saved from."""
    run = reference_run(tmp_path / "run", list(rows_of(response, 1.7, 0.3)))
    files = {name: str(tmp_path / name) for name in ("c.json", "c.svg", "saved.json")}
    common = ["calibrate", "--config", config, "--sequences", "64"]
    more = ["--json", files["c.json"], "--plot", files["c.svg"], "--save-reference", files["saved.json"]]
    assert main([*common, "--reference", str(run), *more]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].startswith("--set fast_electra.curriculum.initial=1.7 --set fast_electra.curriculum.rate=0.")
    written = json.loads((tmp_path / "c.json").read_text())
    assert printed[-1] == " ".join(f"--set {override}" for override in written["set"])
    assert (tmp_path / "c.svg").read_text().startswith("<?xml")
    overrides = [*written["set"], "fast_electra.curriculum.schedule=polynomial"]
    assert RunConfig.model_validate(load(config, overrides).run).curriculum.initial == written["initial"]

    again = [*common, "--reference", files["saved.json"], "--set", "fast_electra.curriculum.schedule=polynomial"]
    assert main(again) == 0
    assert "fast_electra.curriculum.schedule=exponential" in capsys.readouterr().out.splitlines()[-1]
    saved = json.loads((tmp_path / "saved.json").read_text())
    assert saved["points"] == written["reference"]["points"]
    assert set(saved["made"]["versions"]) == {"fast_electra", "torch", "deepspeed"}


def test_shipped_reference_has_a_curriculum_in_it() -> None:
    reference = open_reference(None)
    assert len(reference.u_P) >= 20 and reference.u_P[-1] > 0.95
    assert (reference.curve_2P[:, 0] - reference.curve_2P[:, -1] > 0.05).all()
    assert reference.made["objective"] == "joint"


def curve(response: fit.Response, ends: float) -> Reference:
    """A reference that falls by 10% of both measures to `ends` of what the auxiliary has at T = 1."""
    u = np.linspace(0.02, 1.0, 50)
    return Reference(u, response.at(np.array([1.0])) * ends * (1.1 - 0.1 * u), "made up", {})


@pytest.mark.parametrize(
    ("ends", "note"),
    [(0.7, "on the reference is harder than this auxiliary is at T = 1"), (1.1, "would match there, but a curriculum")],
)
def test_reference_that_cannot_be_matched_is_told(ends: float, note: str, config: str, response: fit.Response) -> None:
    reference = curve(response, ends)
    reference = Reference(reference.u_P, reference.curve_2P.clip(max=1.0), "made up", {})
    assert any(note in line for line in calibrate.notes(calibrate.calibrate(config, [], None, reference, "level", 64)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reference", "absent"], "there is no reference absent"),
        (["--reference", "not_json.json"], "is not valid JSON"),
        (["--reference", "not_a_curve.json"], 'it must hold "points"'),
        (["--reference", "empty"], "holds no config.json of a run"),
        (["--reference", "mlm"], "logged no original_probability and no replacement_entropy (objective mlm)"),
        (["--reference", "stored"], "and not from a store"),
        (["--reference", "ignorant", "--match", "shape"], "there is no curriculum in it"),
        (["--auxiliary", "absent"], "holds no trained model"),
        (["--auxiliary", "other"], "was trained with another tokenizer"),
        (["--set", "fast_electra.objective=mlm"], "calibrate is for the temperature"),
        (["--set", "fast_electra.replacement.augmentation=dropout"], "augmentation dropout: name a config"),
        (["--sequences", "0"], "--sequences must be at least 1, not 0"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    message: str,
    config: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("not_json.json").write_text("{")
    Path("not_a_curve.json").write_text('{"points": [{"u": 1, "replaced": 2, "entropy": 0}]}')
    Path("empty").mkdir()
    common = {"updates": 10, "loss": 1.0}
    reference_run(Path("mlm"), [{"update": n, **common} for n in range(1, 11)], "mlm")
    null: Row = {"original_probability": None, "replacement_entropy": None}
    reference_run(Path("stored"), [{"update": n, **common, **null} for n in range(1, 11)], "rtd")
    nothing = {"original_probability": 0.001, "replacement_entropy": math.log(1000)}
    reference_run(Path("ignorant"), [{"update": n, **common, **nothing} for n in range(1, 11)])
    model = calibrate.open_auxiliary(load(config).run, open_run_corpus(load(config).run)).model
    save_model(Path("other/model"), "mlm", model.encoder.settings, model.state_dict(), tokenizer="0" * 64)

    assert main(["calibrate", "--config", config, "--sequences", "8", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    line = [line for line in printed.err.splitlines() if line.startswith("fast-electra: error: ")]
    assert len(line) == 1 and message in line[0]


def test_reference_by_hand_need_not_name_itself(tmp_path: Path) -> None:
    points = [{"u": u, "replaced": 1 - u / 2, "entropy": 1 - u} for u in (0.1, 0.5, 1.0)]
    (tmp_path / "mine.json").write_text(json.dumps({"points": points}))
    reference = open_reference(str(tmp_path / "mine.json"))
    assert reference.name == "mine.json"
    np.testing.assert_allclose(reference.at(np.array([0.3])), [[0.85], [0.7]])
    (tmp_path / "mine.json").write_text(json.dumps({"points": points[::-1]}))
    with pytest.raises(UserError, match="in order of"):
        open_reference(str(tmp_path / "mine.json"))
