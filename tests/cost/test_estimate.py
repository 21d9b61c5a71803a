"""`fast-electra estimate --config`: what a run costs, and what a user may get wrong."""

import json
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from conftest import Corpus

from fast_electra.cli import main
from fast_electra.config import load
from fast_electra.corpus.corpus import CorpusSettings, open_corpus
from fast_electra.cost import estimate
from fast_electra.cost.estimate import GPUS, checkpointing_advice
from fast_electra.cost.methods import highest_moment, job_of
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.files import save_model
from fast_electra.model.heads import MaskedLanguageModel

CONFIGS = Path(__file__).parent.parent.parent / "ds_configs"


@pytest.fixture(autouse=True)
def no_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configs name folders of the working directory."""
    monkeypatch.chdir(tmp_path)


def run_of(capsys: pytest.CaptureFixture[str], config: str, *arguments: str) -> dict[str, Any]:
    """The part of --json that is about a config."""
    assert main(["estimate", "--json", "--config", str(CONFIGS / config), *arguments]) == 0
    run: dict[str, Any] = json.loads(capsys.readouterr().out)["run"]
    return run


def test_the_issues_command_prints_readable_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--config", str(CONFIGS / "large.json"), "--gpus", "64"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100 + len(str(CONFIGS))
    for text in ("online *", "recomputation of the layers", "Adam's two moments", "Advice"):
        assert text in printed
    assert "Warnings" not in printed


def test_dollars_are_there_only_at_a_price(capsys: pytest.CaptureFixture[str]) -> None:
    large = ["estimate", "--config", str(CONFIGS / "large.json")]
    free, sold = run_of(capsys, "large.json"), run_of(capsys, "large.json", "--dollars-per-hour", "2")
    assert "dollar" not in json.dumps(free)
    assert sold["machine"]["dollars_per_hour"] == 2
    for cost in sold["methods"].values():
        assert cost["dollars"] == pytest.approx(2 * cost["gpu_hours"])
    assert main(large) == 0
    printed = capsys.readouterr().out
    assert "dollar" not in printed and "$" not in printed
    assert main([*large, "--dollars-per-hour", "2"]) == 0
    printed = capsys.readouterr().out
    assert "an hour of one h100 is $2.00, as given" in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("  dollars ")]
    assert float(line.split()[1]) == pytest.approx(sold["methods"]["joint"]["dollars"], rel=1e-2)


def test_the_example_in_the_docs_is_what_the_command_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("ds_configs").symlink_to(CONFIGS)
    assert main(["estimate", "--config", "ds_configs/large.json", "--gpus", "64"]) == 0
    printed = capsys.readouterr().out
    run = printed[printed.index("ds_configs/large.json, as the code") :].rstrip()
    page = (CONFIGS.parent / "docs" / "cost.md").read_text()
    assert "\n".join(f"    {line}".rstrip() for line in run.splitlines()) in page
    table = printed[: printed.index("ds_configs/large.json")].splitlines()[3:]
    assert all(f"    {line}".rstrip() in page for line in table)


def test_large_costs_what_its_terms_say(capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(capsys, "large.json", "--gpus", "64")
    methods = run["methods"]
    assert run["method"] == "online"
    for cost in methods.values():
        seconds = 125_000 * cost["flops_per_update"] / (64 * 989.4e12 * 0.4)
        assert cost["hours"] == pytest.approx(seconds / 3600)
        assert cost["gpu_hours"] == pytest.approx(64 * cost["hours"])
    for measure in ("hours", "bytes_per_device_total"):
        assert methods["offline"][measure] < methods["online"][measure] < methods["joint"][measure]
    # The issue's own arithmetic (performance.md): 1005 GFLOPs of the main model, 94-96 of the auxiliary at masked rows.
    main_terms = methods["offline"]["flops_per_sequence"]["main model"]
    assert sum(main_terms.values()) - main_terms["recomputation of the layers"] == pytest.approx(1005e9, rel=0.005)
    assert sum(methods["online"]["flops_per_sequence"]["auxiliary"].values()) == pytest.approx(95.9e9, rel=0.001)
    # Joint trains both models, the shared embedding once.
    trained = methods["joint"]["parameters"]["trained"]
    assert trained == methods["offline"]["parameters"]["trained"] + 207_845_376 - 128_000 * 1024
    assert methods["online"]["parameters"]["frozen"] == 207_845_376


def test_flops_are_by_the_lengths_of_the_corpus(
    capsys: pytest.CaptureFixture[str], tiny_corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, fraction = tiny_corpus.vocabulary_size, 0.15
    overrides = [f"fast_electra.model.vocabulary_size={size}", "fast_electra.corpus.sequence_length=512"]
    folders = [f"fast_electra.corpus.{name}={getattr(tiny_corpus, name)}" for name in ("shards", "tokenizer")]
    full, run = (
        run_of(capsys, "tiny.json", *(word for override in chosen for word in ("--set", override)))
        for chosen in (overrides, [*overrides, *folders])
    )
    settings = CorpusSettings(shards=str(tiny_corpus.shards), tokenizer=str(tiny_corpus.tokenizer))
    train = open_corpus(settings, size, verify=False).train
    lengths = [len(train.tokens(torch.tensor([number]))) for number in range(len(train))]
    found, of_full = run["lengths"], full["lengths"]
    assert found["mean"] == pytest.approx(mean(lengths)) and found["longest"] == max(lengths)
    assert found["mean_square"] == pytest.approx(mean(length**2 for length in lengths))
    assert found["masked"] == pytest.approx(mean(int((length - 2) * fraction + 0.5) for length in lengths))
    assert of_full == {"mean": 512, "mean_square": 512**2, "masked": 77, "longest": 512, "of": of_full["of"]}
    assert "no tokenizer in runs/quickstart/tokenizer" in of_full["of"] and found["of"] == "the average of the corpus"
    for method, cost in run["methods"].items():
        for model, terms in cost["flops_per_sequence"].items():
            before = full["methods"][method]["flops_per_sequence"][model]
            for term, by in (("query, key, value", "mean"), ("attention scores and values", "mean_square")):
                assert terms[term] / before[term] == pytest.approx(found[by] / of_full[by])
        assert cost["hours"] < 0.95 * full["methods"][method]["hours"]
        assert cost["bytes_per_device"] == full["methods"][method]["bytes_per_device"]  # the most that may come
    monkeypatch.setattr(estimate, "SAMPLE", len(train) // 3)
    sampled, _ = estimate.corpus_lengths(load(CONFIGS / "tiny.json", [*overrides, *folders]).run)
    assert sampled is not None and 0 < abs(sampled.mean / found["mean"] - 1) < 0.05


def test_an_old_gpu_keeps_masks(capsys: pytest.CaptureFixture[str]) -> None:
    """It cannot run the kernels of attention that keep nothing for pairs of tokens."""
    old, new = (run_of(capsys, "base.json", "--gpu", gpu, *WITHOUT) for gpu in ("v100", "a100"))
    assert old["methods"]["online"]["bytes_per_device_total"] > 1.2 * new["methods"]["online"]["bytes_per_device_total"]
    assert any("but each layer its mask" in line for line in old["assumptions"])
    assert not any("but each layer its mask" in line for line in new["assumptions"])


def test_auto_is_the_named_gpus_precision(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_of(capsys, "base.json", "--gpu", "a100")["batch"]["dtype"] == "bf16"
    v100 = run_of(capsys, "base.json", "--gpu", "v100")
    assert v100["batch"]["dtype"] == "fp16"
    assert v100["machine"]["peak_flops"] == GPUS["v100"].flops_16
    tiny = run_of(capsys, "tiny.json", "--gpu", "v100")  # bf16.enabled is false there
    assert (tiny["batch"]["dtype"], tiny["machine"]["peak_flops"]) == ("fp32", GPUS["v100"].flops_32)


def test_more_gpus_share_states_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    few, many = (run_of(capsys, "base.json", "--gpus", gpus)["methods"]["online"] for gpus in ("4", "8"))
    assert many["hours"] * 2 == few["hours"]
    assert many["gpu_hours"] == few["gpu_hours"]
    for name, size in few["bytes_per_device"].items():
        assert many["bytes_per_device"][name] == (size / 2 if name.endswith("shared out") else size)


@pytest.mark.parametrize(
    ("override", "term", "size"),
    [
        ("zero_optimization.overlap_comm=true", "reduction's buckets", 2 * 2 * 50_000_000),
        ("zero_optimization.overlap_comm=false", "reduction's buckets", 2 * 50_000_000),
        ("zero_optimization.reduce_bucket_size=1000", "reduction's buckets", 2 * 2 * 1000),
        ("zero_optimization.contiguous_gradients=false", "gradients before their reduction", 2 * 50_000_000),
    ],
)
def test_buckets_are_as_configured(capsys: pytest.CaptureFixture[str], override: str, term: str, size: int) -> None:
    """DeepSpeed allocates whole buckets in bf16, two of them to overlap communication."""
    run = run_of(capsys, "base.json", "--gpus", "2", "--set", override)
    assert run["methods"]["online"]["bytes_per_device"][term] == size


def test_an_objective_mlm_has_one_column(capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(capsys, "base_auxiliary.json")
    assert list(run["methods"]) == ["mlm"] == [run["method"]]
    assert run["methods"]["mlm"]["parameters"] == {"trained": 127_383_680, "frozen": 0}


@pytest.mark.parametrize(
    ("override", "method"),
    [
        ("fast_electra.replacement.distribution=uniform", "offline"),
        ("fast_electra.replacement.store=data/store", "offline"),
        ("fast_electra.objective=joint", "joint"),
    ],
)
def test_which_method_a_config_follows(capsys: pytest.CaptureFixture[str], override: str, method: str) -> None:
    assert run_of(capsys, "tiny.json", "--set", override)["method"] == method


def test_depth_of_the_auxiliary(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """For rtd that of the trained one, if it is there; else joint.auxiliary_layers; else the recipe's."""

    def frozen(*overrides: str) -> int:
        arguments = [word for override in overrides for word in ("--set", override)]
        count = run_of(capsys, "tiny.json", *arguments)["methods"]["online"]["parameters"]["frozen"]
        assert isinstance(count, int)
        return count

    recipe = frozen("fast_electra.auxiliary.run=absent")
    sizes: dict[str, object] = {"vocabulary_size": 2048, "layers": 2, "hidden_size": 64, "ffn_size": 256, "heads": 4}
    settings = EncoderSettings.model_validate(sizes | {"initialization": "bert"})
    save_model(tmp_path / "model", "mlm", settings, MaskedLanguageModel(settings).state_dict())
    trained = f"fast_electra.auxiliary.run={tmp_path}"
    assert frozen(trained) > recipe
    assert frozen("fast_electra.objective=joint", trained) == recipe  # which trains its own
    assert frozen("fast_electra.objective=joint", "fast_electra.joint.auxiliary_layers=2") > recipe


def test_what_does_not_fit_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [
        "--set",
        "train_micro_batch_size_per_gpu=512",
        "--set",
        "fast_electra.model.activation_checkpointing=false",
    ]
    run = run_of(capsys, "large.json", "--gpu", "rtx3090", "--gpus", "4", *overrides)
    assert len(run["warnings"]) == 3
    assert all("the rtx3090 has 24 GB" in line for line in run["warnings"])
    assert all(line.endswith("or set fast_electra.model.activation_checkpointing=true") for line in run["warnings"])
    run = run_of(capsys, "large.json", "--gpu", "rtx3090", "--gpus", "4", *overrides[:2])
    assert run["warnings"] and "activation_checkpointing" not in "".join(run["warnings"])  # which is on already


WITHOUT = ("--set", "fast_electra.model.activation_checkpointing=false")


@pytest.mark.parametrize(
    ("config", "gpu", "micro_batch", "fits"),
    [
        ("base", "h100", 128, True),
        ("base", "rtx3090", 32, True),
        ("base", "rtx3090", 128, False),
        ("base_joint", "h100", 64, True),
        ("base_joint", "rtx3090", 128, False),
        ("base_auxiliary", "rtx3090", 32, True),
        ("base fast_electra.replacement.store=somewhere", "rtx3090", 32, True),  # offline
        ("large", "h100", 64, True),
        ("large", "h100", 256, False),
        ("large", "rtx3090", 16, True),
        ("large", "rtx3090", 64, False),
    ],
)
def test_advice_says_what_the_run_costs_without_checkpointing(
    config: str, gpu: str, micro_batch: int, fits: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its figures are those of the estimate of a run that follows it."""
    file, *overrides = config.split()
    more = [word for override in overrides for word in ("--set", override)]
    common = [
        f"{file}.json",
        *more,
        "--gpus",
        "8",
        "--gpu",
        gpu,
        "--set",
        f"train_micro_batch_size_per_gpu={micro_batch}",
    ]
    run, follower = run_of(capsys, *common), run_of(capsys, *common, *WITHOUT)
    assert follower["advice"] == []
    before, after = (own["methods"][own["method"]] for own in (run, follower))
    need, room = after["bytes_per_device_total"] / 1e9, GPUS[gpu].gigabytes
    assert fits == (need < 0.8 * room)
    if not fits:
        assert run["advice"] == []
        return
    (advice,) = run["advice"]
    assert f"needs {need:.1f} of its {room:.1f} GB" in advice
    assert advice.endswith(" ".join(WITHOUT))
    saved = 1 - after["flops_per_update"] / before["flops_per_update"]
    assert 0.17 < saved < 0.26 and f"{saved:.0%} fewer FLOPs" in advice


def test_advice_leaves_a_margin_and_needs_no_model(tmp_path: Path) -> None:
    """On a CPU too. A run that does not read the auxiliary is not held up by a damaged one."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text("{")
    overrides = [f"fast_electra.auxiliary.run={tmp_path}", "fast_electra.replacement.store=store"]
    on_cpu = load(CONFIGS / "base.json", [*overrides, "train_micro_batch_size_per_gpu=4"])
    need = highest_moment(job_of(on_cpu.changed(model={"activation_checkpointing": False}), None), "offline").bytes
    assert checkpointing_advice(on_cpu, 1.26 * need) is not None
    assert checkpointing_advice(on_cpu, 1.24 * need) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "0"], "--gpus 0"),
        (["--gpus", "3"], "set train_batch_size to a multiple of 3"),
        (["--gpu", "abacus"], "--gpu abacus: the peak of that GPU is not known here; name one of v100, "),
        (["--mfu", "0"], "--mfu 0 must be a share of the peak"),
        (["--mfu", "1.5"], "--mfu 1.5 must be a share of the peak"),
        (["--mfu", "nan"], "--mfu nan must be a share of the peak"),
        (["--dollars-per-hour", "-1"], "--dollars-per-hour must be a price, 0 or more, not -1"),
        (["--gpu", "v100", "--set", "bf16.enabled=true"], "v100 does not compute in bf16"),
        (["--set", "fast_electra.model.layer=3"], "did you mean layers?"),
        (["--config", "absent.json"], "there is no config file absent.json"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--config", str(CONFIGS / "tiny.json"), *arguments]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert message in printed.err
