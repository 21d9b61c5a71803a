"""`fast-electra estimate --config`: what a run costs, and what a user may get wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from fast_electra.cli import main
from fast_electra.cost.estimate import GPUS
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.files import save_model
from fast_electra.model.heads import MaskedLanguageModel

CONFIGS = Path(__file__).parent.parent.parent / "ds_configs"


def run_of(capsys: pytest.CaptureFixture[str], config: str, *arguments: str) -> dict[str, Any]:
    """The part of --json that is about a config."""
    assert main(["estimate", "--json", "--config", str(CONFIGS / config), *arguments]) == 0
    run: dict[str, Any] = json.loads(capsys.readouterr().out)["run"]
    return run


def test_the_issues_command_prints_readable_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--config", str(CONFIGS / "large.json"), "--gpus", "64"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100 + len(str(CONFIGS))
    for text in ("online *", "recomputation of the layers", "Adam's two moments", "dollars", "an assumption of 2026"):
        assert text in printed
    assert "Warnings" not in printed


def test_the_example_in_the_docs_is_what_the_command_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    assert main(["estimate", "--config", "ds_configs/large.json", "--gpus", "64"]) == 0
    printed = capsys.readouterr().out
    run = printed[printed.index("ds_configs/large.json, as the code") :].rstrip()
    page = Path("docs/cost.md").read_text()
    assert "\n".join(f"    {line}".rstrip() for line in run.splitlines()) in page
    table = printed[: printed.index("ds_configs/large.json")].splitlines()[3:]
    assert all(f"    {line}".rstrip() in page for line in table)


def test_large_costs_what_its_terms_say(capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(capsys, "large.json", "--gpus", "64", "--dollars-per-hour", "2")
    methods = run["methods"]
    assert run["method"] == "online"
    for cost in methods.values():
        terms = [value for part in cost["flops_per_sequence"].values() for value in part.values()]
        assert cost["flops_per_sequence_total"] == sum(terms)
        assert cost["flops_per_update"] == 2048 * sum(terms)
        assert cost["bytes_per_device_total"] == sum(cost["bytes_per_device"].values())
        seconds = 125_000 * cost["flops_per_update"] / (64 * 989.4e12 * 0.4)
        assert cost["hours"] == pytest.approx(seconds / 3600)
        assert cost["gpu_hours"] == pytest.approx(64 * cost["hours"])
        assert cost["dollars"] == pytest.approx(2 * cost["gpu_hours"])
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
    assert many["dollars"] == few["dollars"]
    for name, size in few["bytes_per_device"].items():
        assert many["bytes_per_device"][name] == (size / 2 if name.endswith("shared out") else size)


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
    """The trained one's, where it is there; else joint.auxiliary_layers; else the recipe's."""

    def frozen(*overrides: str) -> int:
        arguments = [word for override in overrides for word in ("--set", override)]
        count = run_of(capsys, "tiny.json", *arguments)["methods"]["online"]["parameters"]["frozen"]
        assert isinstance(count, int)
        return count

    recipe = frozen("fast_electra.auxiliary.run=absent")
    sizes: dict[str, object] = {"vocabulary_size": 2048, "layers": 2, "hidden_size": 64, "ffn_size": 256, "heads": 4}
    settings = EncoderSettings.model_validate(sizes | {"initialization": "bert"})
    save_model(tmp_path / "model", "mlm", settings, MaskedLanguageModel(settings).state_dict())
    assert frozen(f"fast_electra.auxiliary.run={tmp_path}") > recipe
    absent = "fast_electra.auxiliary.run=absent"  # the quickstart's may be there
    assert frozen("fast_electra.objective=joint", absent, "fast_electra.joint.auxiliary_layers=2") > recipe


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "0"], "--gpus 0"),
        (["--gpus", "3"], "set train_batch_size to a multiple of 3"),
        (["--gpu", "abacus"], "--gpu abacus: the peak of that GPU is not known here; name one of v100, "),
        (["--mfu", "0"], "--mfu 0 is no share of the peak"),
        (["--mfu", "1.5"], "--mfu 1.5 is no share of the peak"),
        (["--mfu", "nan"], "--mfu nan is no share of the peak"),
        (["--dollars-per-hour", "-1"], "--dollars-per-hour -1 is no price"),
        (["--gpu", "v100", "--set", "bf16.enabled=true"], "v100 does not compute in bf16"),
        (["--set", "fast_electra.model.layer=3"], "did you mean layers?"),
        (["--config", "absent.json"], "there is no config file absent.json"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--config", str(CONFIGS / "tiny.json"), *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert message in printed.err
