"""From a config to its cost, on a machine that need not be this one: what `fast-electra estimate` prints."""

import json
from pathlib import Path
from typing import Any

from fast_electra import config, recipes
from fast_electra.config import Config, RunConfig
from fast_electra.cost.estimate import Machine, estimate
from fast_electra.cost.gpus import named_gpu
from fast_electra.cost.methods import Job, job_of
from fast_electra.cost.table_1 import Models
from fast_electra.model.encoder import EncoderSettings
from fast_electra.settings import UserError


def paper_models() -> dict[str, Models]:
    """Table 2: the recipes that are the paper's."""

    def settings(name: str, objective: str) -> EncoderSettings:
        return EncoderSettings(**recipes.recipe(name, objective)["model"])

    return {name: Models(settings(name, "rtd"), settings(name, "mlm")) for name in ("base", "large")}


def estimate_config(path: str | Path, overrides: list[str], machine: Machine) -> dict[str, Any]:
    """The cost of a config's run; `method` in it is the one that the config itself follows.

    What the config leaves `auto` is what the named GPU is best at, not this machine.
    """
    machine.check()
    tree = config.read(path, overrides)
    dtype = _precision(tree, machine.gpu, str(path))
    # Which of them this machine could do is of no matter.
    loaded = config.load(path, [*overrides, "bf16.enabled=false", "fp16.enabled=false"], world=machine.gpus)
    given = loaded.run.auxiliary.dtype if loaded.run.auxiliary else "auto"
    auxiliary_dtype = named_gpu(machine.gpu).dtype if given == "auto" else given
    auxiliary, source = auxiliary_settings(loaded.run)
    notes = [f"{dtype}, as the config says or, where it says auto, as suits the {machine.gpu}"]
    if auxiliary is not None:
        notes.append(f"layers of the auxiliary: {auxiliary.layers} of width {auxiliary.hidden_size}, as {source} says")
    job = job_of_config(loaded, auxiliary, machine.gpus, dtype, auxiliary_dtype)
    return {"config": str(path), "method": method_of(loaded.run), **estimate(job, machine, notes)}


def job_of_config(
    loaded: Config,
    auxiliary: EncoderSettings | None,
    world: int,
    dtype: str,
    auxiliary_dtype: str | None = None,
    on_gpu: bool = True,
) -> Job:
    """The job of a resolved config with this auxiliary; see `job_of`."""
    run = loaded.run
    return job_of(
        model=run.model,
        auxiliary=auxiliary,
        sharing=run.joint.embedding_sharing if run.joint else "shared",
        length=run.corpus.sequence_length,
        mask_fraction=run.corruption.mask_fraction,
        updates=run.updates,
        deepspeed=loaded.deepspeed,
        world=world,
        dtype=dtype,
        auxiliary_dtype=auxiliary_dtype,
        on_gpu=on_gpu,
    )


def method_of(run: RunConfig) -> str:
    """Which of the methods a config follows; one that needs no auxiliary costs as much as an offline one."""
    if run.objective != "rtd":
        return run.objective
    return "online" if run.replacement.distribution == "auxiliary" and not run.replacement.store else "offline"


def auxiliary_settings(run: RunConfig) -> tuple[EncoderSettings | None, str]:
    """Sizes of the auxiliary that stands beside a main model, and what they come from; None for objective mlm.

    That of `auxiliary.run` where it is trained already; else one whose layers are the main model's, as many as
    `joint.auxiliary_layers` or the recipe say (Table 2).
    """
    if run.objective == "mlm":
        return None, ""
    if run.auxiliary is not None and run.auxiliary.run is not None:
        description = Path(run.auxiliary.run) / "model" / "model.json"
        if description.is_file():
            return EncoderSettings(**json.loads(description.read_text())["encoder"]), str(description)
    if run.joint is not None:
        layers, source = run.joint.auxiliary_layers, "joint.auxiliary_layers"
    else:
        layers, source = recipes.recipe(run.recipe, "mlm")["model"]["layers"], f"the recipe {run.recipe}"
    return run.model.model_copy(update={"layers": layers}), source


def _precision(tree: dict[str, Any], gpu: str, where: str) -> str:
    """fp32, bf16 or fp16: what the config enables, `auto` being what the GPU is best at."""
    best = named_gpu(gpu).dtype
    switches = {name: tree[name].get("enabled") for name in ("bf16", "fp16") if isinstance(tree.get(name), dict)}
    enabled = [name for name, on in switches.items() if on is True or (on == "auto" and name == best)]
    if "bf16" in enabled and best != "bf16":
        raise UserError(f"{where}: bf16.enabled is true, but a {gpu} does not compute in bf16; use fp16 or auto")
    if len(enabled) > 1:
        raise UserError(f"{where}: bf16 and fp16 are both enabled on a {gpu}; keep one")
    return enabled[0] if enabled else "fp32"
