"""NVIDIA's apex, where it is installed: its layer norm and its Adam. PyPI's package of that name is another one."""

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from fast_electra.settings import UserError

KEY = "fast_electra.apex=true"


def find() -> tuple[Path | None, str]:
    """Return the folder of NVIDIA's apex; or None, and what is the matter. Nothing is imported."""
    spec = importlib.util.find_spec("apex")
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []
    for folder in folders:
        if (folder / "optimizers" / "fused_adam.py").exists():
            return folder, ""
    if spec:
        return None, "PyPI's unrelated web toolkit, not NVIDIA's: pip uninstall apex"
    return None, "NVIDIA's is not installed. Never `pip install apex`: the PyPI package of that name is unrelated"


def load() -> tuple[type[nn.Module], type[Optimizer]]:
    """Import NVIDIA's FusedLayerNorm and FusedAdam.

    Raises:
        UserError: apex is missing, is PyPI's package, or does not work here.
    """
    folder, problem = find()
    if folder is None:
        raise UserError(f"{KEY}, but apex is missing: {problem}; or leave the key out")
    with _errors_as_one_line():
        norm = importlib.import_module("apex.normalization").FusedLayerNorm
        adam = importlib.import_module("apex.optimizers").FusedAdam
        norm(1)  # loads its extension
    return norm, adam


def use(model: nn.Module, params: dict[str, Any]) -> Callable[[list[dict[str, Any]]], Optimizer]:
    """Put FusedLayerNorm in the place of every LayerNorm, and return what makes a FusedAdam of parameter groups.

    Parameters and their names stay. Under autocast FusedLayerNorm computes in autocast's precision, and LayerNorm in
    fp32; a training run has no autocast. `params` is the config's `optimizer.params`.
    """
    fused_norm, fused_adam = load()
    for module in list(model.modules()):
        for name, norm in list(module.named_children()):
            if type(norm) is nn.LayerNorm:
                fused = fused_norm(norm.normalized_shape, eps=norm.eps)
                fused.weight, fused.bias = norm.weight, norm.bias
                setattr(module, name, fused)
    options = {key: value for key, value in params.items() if key != "torch_adam"}

    def make(groups: list[dict[str, Any]]) -> Optimizer:
        with _errors_as_one_line():
            return _interchanging(fused_adam)(groups, **options)

    return make


def _interchanging(base: type[Optimizer]) -> Callable[..., Optimizer]:
    """Return apex's FusedAdam with the state of DeepSpeed's, so that each continues the other's checkpoints.

    DeepSpeed's keeps the number of steps with the moments, and 0 in the group. apex has the number in the group alone.
    """

    class FusedAdam(base):  # type: ignore[misc, valid-type]
        def step(self, closure: Any = None) -> Any:
            states = [[self.state[p] for p in group["params"]] for group in self.param_groups]
            for group, group_states in zip(self.param_groups, states, strict=True):
                group["step"] = max(int(state.get("step", 0)) for state in group_states)
            loss = super().step(closure)
            for group, group_states in zip(self.param_groups, states, strict=True):
                for state in filter(None, group_states):  # those without gradient have none
                    state["step"] = group["step"]
                group["step"] = 0
            return loss

    return FusedAdam


@contextmanager
def _errors_as_one_line() -> Iterator[None]:
    """Tell in one line that apex does not work: its errors are of many kinds."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        remedy = "build it for this torch and GPU, with its CUDA extensions, or leave the key out"
        raise UserError(f"{KEY}, but apex in {find()[0]} does not work here ({reason}): {remedy}") from None
