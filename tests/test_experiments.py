"""The measures of experiments/probes.py, the statistics of compare.py, the variants' configs, the plots and tables."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, Corpus
from scipy import stats
from sklearn.metrics import roc_auc_score

from fast_electra.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from fast_electra.corpus.sequences import Sequences
from fast_electra.corpus.shards import Shards
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.heads import Discriminator, MaskedLanguageModel
from fast_electra.training.loop import evaluation_batch

sys.path.append(str(ROOT / "experiments"))
import compare
import plots
import probes
import variants

SIZES = EncoderSettings(vocabulary_size=1000, layers=1, hidden_size=32, ffn_size=64, heads=2, initial_std=0.1)


@pytest.fixture(scope="module")
def splits(tiny_corpus: Corpus) -> tuple[Sequences, Sequences]:
    tokenizer = SentencePieceTokenizer.load(tiny_corpus.tokenizer)
    train, heldout = (
        Sequences(Shards.open(tiny_corpus.shards, split, verify=False), tokenizer, 32) for split in ("train", "heldout")
    )
    return train, heldout


@pytest.fixture(scope="module")
def judge() -> MaskedLanguageModel:
    return MaskedLanguageModel(SIZES, seed=7)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use inputs small enough for a second."""
    for name, value in (("FIT", 96), ("TEST", 64), ("STEPS", 10)):
        monkeypatch.setattr(probes, name, value)


def test_swapped_neighbours_are_all_and_only_what_is_labelled(splits: tuple[Sequences, Sequences]) -> None:
    batch = evaluation_batch(splits[0], "reference", torch.arange(200), probes.SEED)
    swapped = probes.swap(batch)
    changed_P = (swapped.tokens_T != batch.tokens_T)[swapped.positions_P]
    assert torch.equal(changed_P.long(), swapped.labels_P)
    layout, lengths = batch.layout, batch.layout.lengths_B.tolist()
    assert len(swapped.positions_P) == sum(lengths) - 2 * len(lengths)  # [CLS] and [SEP] are not asked for
    assert torch.equal(swapped.tokens_T[~layout.maskable_T], batch.tokens_T[~layout.maskable_T])
    for one, other in zip(swapped.tokens_T.split(lengths), batch.tokens_T.split(lengths), strict=True):
        assert torch.equal(one.sort().values, other.sort().values)  # no token came or went
        assert abs(int((one != other).sum()) / 2 - (len(one) - 2) * probes.SWAPPED / 2) <= 0.5
    # The positions of a pair are one odd, one even.
    odd = layout.position_T[swapped.positions_P[swapped.labels_P == 1]] % 2
    assert odd.double().mean() == 0.5


def test_hidden_tokens_are_those_asked_for(splits: tuple[Sequences, Sequences]) -> None:
    batch = evaluation_batch(splits[0], "reference", torch.arange(50), probes.SEED)
    class_V = torch.full((1000,), -1)
    frequent_C = batch.tokens_T[batch.layout.maskable_T].bincount(minlength=1000).argsort(descending=True)[:20]
    class_V[frequent_C] = torch.arange(20)
    hidden = probes.hide(batch, class_V, 1)
    assert len(hidden.positions_P) > 50
    assert (hidden.tokens_T[hidden.positions_P] == 1).all()
    assert torch.equal(frequent_C[hidden.labels_P], batch.tokens_T[hidden.positions_P])


def test_auc_is_exact_with_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2000, generator=generator).mul(8).round()
    labels = (torch.rand(2000, generator=generator) < 0.2).long()
    assert probes.auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_probe_finds_what_is_linear_and_nothing_in_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    x_PD, noise_PD = (torch.randn(4000, 8, generator=generator) * 50 + 7 for _ in range(2))
    labels = x_PD[:, :3].argmax(1)  # three classes, of features that are neither centred nor scaled

    def accuracy(features: torch.Tensor) -> float:
        log_p = probes.probe(features[:2000], labels[:2000], features[2000:], 3)
        assert log_p.exp().sum(1) == pytest.approx(torch.ones(2000))
        return float((log_p.argmax(1) == labels[2000:]).double().mean())

    assert accuracy(x_PD) > 0.97
    assert accuracy(noise_PD) < 0.40  # chance is 1/3; 1/3 plus six standard errors of 2,000 guesses


@pytest.mark.usefixtures("few")
def test_the_same_model_gets_the_same_scores_and_each_measure_needs_what_it_names(
    splits: tuple[Sequences, Sequences], judge: MaskedLanguageModel
) -> None:
    inputs, again = (probes.prepare(*splits, judge) for _ in range(2))
    model = Discriminator.new(SIZES, seed=3)
    first = probes.score(model.train(), inputs)
    assert first == probes.score(model, again)
    assert set(first) == {"swap_auc", "cloze_nats", "cloze_accuracy", "judge_auc"}
    assert "judge_auc" not in probes.score(judge, inputs)
    torch.nn.init.zeros_(model.output.weight)  # a head that says nothing
    blunt = probes.score(model, inputs)
    assert blunt["judge_auc"] == 0.5 and blunt["swap_auc"] == first["swap_auc"]
    assert blunt["cloze_nats"] == first["cloze_nats"]


def test_every_variant_is_a_config_that_changes_what_it_names_only(tmp_path: Path) -> None:
    study = variants.Study(tmp_path, 100)
    fast = study.load("fast", 1).to_json()
    seen = set()
    for name, variant in variants.VARIANTS.items():
        loaded = study.load(name, 1).to_json()
        section = loaded["fast_electra"]
        seen.add(json.dumps({**section, "run": "", "checkpoint": ""}, sort_keys=True) + str(loaded["deepspeed"]))
        for key in ("seed", "updates", "model", "corpus", "corruption"):
            assert section[key] == fast["fast_electra"][key], (name, key)
        if variant.file == "tiny":
            assert loaded["deepspeed"] == fast["deepspeed"], name
        assert (section["replacement"]["distribution"] == "auxiliary") == (variant.depth > 0 or "joint" in name)
    assert len(seen) == len(variants.VARIANTS)
    for name in (variants.JUDGE, "auxiliary_1", "auxiliary_3"):
        assert study.load(name, 1).run.objective == "mlm"
    assert {name for names in compare.GROUPS.values() for name in names} == set(variants.VARIANTS)


def result(**scores: list[float]) -> dict[str, Any]:
    rows = {name: {str(seed): {"9": {"x": x}} for seed, x in enumerate(column)} for name, column in scores.items()}
    return {"updates": 9, "scores": rows, "references": {}}


def test_differences_are_paired_by_seed() -> None:
    figures = result(fast=[0.60, 0.70, 0.80, 0.65], fixed=[0.58, 0.67, 0.79, 0.63])
    mean, half = found = compare.difference(figures, "fixed", "x")
    interval = stats.ttest_rel([0.58, 0.67, 0.79, 0.63], [0.60, 0.70, 0.80, 0.65]).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((interval.low, interval.high))
    assert found.clear  # though the seeds differ by ten times as much
    assert not compare.difference(result(fast=[0.6], fixed=[0.5]), "fixed", "x").clear  # one seed tells nothing
    assert np.allclose(compare.values(figures, "fast", "x"), [0.60, 0.70, 0.80, 0.65])


def test_threshold_is_passed_by_chance_in_one_of_twenty_whole_experiments() -> None:
    generator = np.random.default_rng(0)
    passed = 0
    for _ in range(400):
        figures = generator.normal(size=(8, 3)) + 5 * generator.normal(size=3)  # seeds differ more than variants
        drawn = result(**{name: list(row) for name, row in zip(["fast", *"abcdefg"], figures, strict=True)})
        least = compare.threshold(drawn, "x")
        passed += any(abs(compare.difference(drawn, name, "x").mean) > least for name in "abcdefg")
    # One measure of the three counted: at most 1/60 is expected; 20 of 400 is 5 standard deviations above that.
    assert passed < 20


def test_the_page_holds_what_the_results_say_and_every_plot_is_drawn(tmp_path: Path) -> None:
    """The tables of docs/results.md are those that plots.py makes of experiments/results/."""
    text = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    (tmp_path / "results.md").write_text(text, encoding="utf-8")
    plots.write_all(ROOT / "experiments/results/curricula.json", tmp_path)
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == text
    images = set(re.findall(r"\(images/(.*?)\)", text))
    assert {path.name for path in (tmp_path / "images").iterdir()} == images


def test_sweeps_are_shown_though_a_run_diverged(tmp_path: Path) -> None:
    names = list(
        dict.fromkeys(n for sweep in variants.SWEEPS.values() for line in sweep.lines.values() for n in line.values())
    )
    keys = [measure.key for measure in compare.MEASURES]
    scores = {name: {s: {u: dict.fromkeys(keys, 0.5 + int(s) / 100) for u in "59"} for s in "012"} for name in names}
    scores["joint_rate_0.064"]["1"] = {"9": {}}
    scores["fixed_rate_0.064"]["2"]["9"]["judge_auc"] = 0.4
    run = {"losses": [0.5, None, 0.4], "skipped": 0, "diverged": False, "auxiliary_accuracy": 0.25}
    runs = {name: dict.fromkeys("012", run) for name in names}
    runs["joint_rate_0.064"]["1"] = {"losses": [0.5], "skipped": 10, "diverged": True, "auxiliary_accuracy": None}
    result = {"updates": 9, "bin": 3, "scores": scores, "references": {}, "runs": runs, "sweeps": list(variants.SWEEPS)}
    result["without_a_model"] = {"judge_auc": 0.45}
    places = "".join(f"<!-- table: sweep_{name} -->\n<!-- end of table -->\n" for name in [*variants.SWEEPS, "task"])
    text = plots.write_sweeps(result | {"tasks": {"rt_sentiment": {"fast-0": [0.5, 0.6]}}}, tmp_path, places)
    assert "| joint, 0.064 | – | – | – | – | – | – | 0.25 | 10 updates skipped, 1 runs diverged |" in text
    assert "| 0.470 ± 0.061 | −0.040 ± 0.172 | 0.25 | 1 runs use no context |" in text
    assert "| joint, 0.032 | 0.510 ± 0.010 | +0.000 ± 0.000 |" in text
    assert "| *joint: range (spread of a seed)* | 0.000 (0.010) |" in text
    assert "| Fast-ELECTRA | 0.550 ± 0.071 |" in text
    assert set(re.findall(r"\((\S*?\.svg)\)", text)) == {f"images/{path.name}" for path in tmp_path.iterdir()}


def test_tables_go_where_their_names_are() -> None:
    text = "a\n<!-- table: one -->\nold\n<!-- end of table -->\nb\n<!-- table: two -->\n<!-- end of table -->\nc\n"
    text = compare.put(compare.put(text, "one", "1 \\1"), "two", "2")
    assert text == (
        "a\n<!-- table: one -->\n1 \\1\n<!-- end of table -->\nb\n<!-- table: two -->\n2\n<!-- end of table -->\nc\n"
    )
    with pytest.raises(ValueError, match="three"):
        compare.put(text, "three", "")
