"""apex's norms and Adam, by a stand-in: nothing but rounding changes, and checkpoints pass from one to the other."""

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import scenarios
import torch
from ranks import Pool, Scenario
from safetensors.torch import load_file
from small import load, sizes, tree

from fast_electra.batch import Layout
from fast_electra.jobs import launcher, pretrain
from fast_electra.model.heads import Discriminator
from fast_electra.settings import UserError
from fast_electra.training import nvidia_apex
from fast_electra.training.engines import Ranks

STANDIN = str(Path(__file__).parent.parent / "standin")
UPDATES, CUT = 6, 3
pytestmark = pytest.mark.timeout(600)


@contextmanager
def apex(folder: str = STANDIN) -> Iterator[None]:
    """Install the stand-in, or what else is in a folder."""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        for name in [name for name in sys.modules if name.partition(".")[0] == "apex"]:
            del sys.modules[name]


def runs(corpus: Path, output: Path, ranks: Ranks) -> None:
    """A run of either kind, and from its middle a run of either kind."""
    for first in (False, True):
        whole = output / f"apex_{first}"
        values = scenarios.tree(corpus, whole, checkpoint={"every": CUT}, updates=UPDATES, apex=first)
        values["optimizer"]["params"] |= {"torch_adam": False, "weight_decay": 0.1}
        with apex() if first else nullcontext():
            scenarios.train(values, ranks)
        for then in (False, True) if first else (True,):
            run = output / f"apex_{first}_then_{then}"
            scenarios._cut(whole, run, CUT)
            with apex() if then else nullcontext():
                kept = scenarios.build(
                    values, ranks, f"fast_electra.run={run}", f"fast_electra.apex={json.dumps(then)}"
                )
            adam = type(kept.engine.optimizer.optimizer)
            assert any("apex" in base.__module__ for base in adam.__mro__) is then
            norms = {
                type(module).__module__ for module in kept.engine.modules() if "LayerNorm" in type(module).__name__
            }
            assert norms == ({"apex.normalization"} if then else {"torch.nn.modules.normalization"})
            with redirect_stdout(io.StringIO()) as said:
                pretrain.finish(kept)
            assert ("fp32, NVIDIA's apex, 1 process on" in said.getvalue()) is then


@pytest.fixture(scope="module")
def folder(pools: dict[int, Pool], tiny_corpus: Any, scenario: Scenario) -> Path:
    folder = scenario("auxiliary", world=1)
    pools[1].run(runs, tiny_corpus.shards.parent, folder)
    return folder


@pytest.mark.parametrize("name", ["True", "False_then_True", "True_then_False", "True_then_True"])
def test_checkpoints_interchange_with_and_without_apex(folder: Path, name: str) -> None:
    """A lost number of steps would show: after three, the first moment's bias correction is still 1 / 0.27."""
    weights = [load_file(folder / f"apex_{run}/model/model.safetensors") for run in ("False", name)]
    assert weights[0].keys() == weights[1].keys()
    assert max(float((weights[0][key] - weights[1][key]).abs().max()) for key in weights[0]) < 2e-6


def test_a_run_says_whether_it_uses_apex(folder: Path) -> None:
    for name, used in {"False": False, "True": True, "True_then_False": False, "False_then_True": True}.items():
        assert json.loads((folder / f"apex_{name}/config.json").read_text())["apex"] is used


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_norms_keep_their_names_and_results(dtype: torch.dtype, autocast: bool) -> None:
    """In the precision of the model, and under autocast (to bf16, whose rounding is then allowed)."""
    torch.manual_seed(0)
    settings = sizes(layers=2, dropout=0.0, attention_dropout=0.0)
    plain = Discriminator.new(settings).to(dtype)
    plain.load_state_dict({name: t + 0.1 * torch.randn_like(t) for name, t in plain.state_dict().items()})
    fused = Discriminator.new(settings).to(dtype)
    names = list(dict(fused.named_parameters()))
    with apex():
        nvidia_apex.use(fused, {"lr": 1.0})
    assert list(dict(fused.named_parameters())) == names
    fused.load_state_dict(plain.state_dict())
    tokens_T, layout = torch.arange(24), Layout.of(torch.tensor([12, 12]))
    for model in (plain, fused):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            model(tokens_T, layout).float().square().sum().backward()
    for one, other in zip(plain.parameters(), fused.parameters(), strict=True):
        assert other.grad is not None and other.grad.dtype == dtype
        tolerance = 0.05 * float(one.grad.abs().max()) if autocast else 0.0
        if autocast and one.numel() == 1:  # the last bias: 24 numbers, each rounded to bf16, which nearly cancel
            tolerance += 0.03
        assert float((one.grad - other.grad).abs().max()) <= tolerance


PROBLEMS = {
    "missing": ({}, "NVIDIA's is not installed. Never `pip install apex`"),
    "another": ({"__init__.py": "raise SystemExit"}, "PyPI's unrelated web toolkit, not NVIDIA's: pip uninstall apex"),
    "half built": (
        {"__init__.py": "", "normalization.py": "import fused_layer_norm_cuda", "optimizers/fused_adam.py": ""},
        r"does not work here \(ModuleNotFoundError: No module named 'fused_layer_norm_cuda'\): build it",
    ),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_apex_that_cannot_be_used_is_one_line(tmp_path: Path, tiny_corpus: Any, name: str) -> None:
    files, message = PROBLEMS[name]
    for file, text in files.items():
        path = tmp_path / "apex" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    loaded = load(tmp_path / "config.json", tree(tiny_corpus, run="mine", apex=True))
    with apex(str(tmp_path)), pytest.raises(UserError, match=f"fast_electra.apex=true, but .*{message}") as caught:
        launcher.begin(loaded)
    assert "\n" not in str(caught.value)


def test_a_second_adam_is_refused(tmp_path: Path, tiny_corpus: Any) -> None:
    values = tree(tiny_corpus, run="mine", apex=True)
    values["optimizer"]["params"]["torch_adam"] = True
    with pytest.raises(UserError, match="apex brings its own Adam, and"):
        load(tmp_path / "config.json", values)
    values["fast_electra"]["apex"] = "auto"
    assert not load(tmp_path / "config.json", values).apex  # until it has been measured faster
