"""DeepSpeed's part of a config: check every key and value, make the batch sizes consistent, and resolve `auto`.

DeepSpeed itself ignores a misspelt top-level key and leaves `auto` to others. `deepspeed_schema` has what a key holds.
"""

import copy
from typing import Any, NamedTuple

from pydantic import ValidationError

from fast_electra.deepspeed_schema import AUTOS, MOST_SEQUENCES, SCHEDULER_PARAMS, SCHEMA, SIZES
from fast_electra.settings import Settings, UserError, local_path, one_line


class Machine(NamedTuple):
    """Facts about the machine that runs a config. They are given, so that a config can be checked for any machine."""

    processes: int = 1
    best_dtype: str = "fp32"  # what `auto` means: the fastest precision that computes correctly there
    on_gpu: bool = False
    runs_triton: bool = True  # whether its GPU, if it has one, is new enough for our Triton kernels

    def dtype(self, name: str, key: str) -> str:
        """Return the precision `name`, with `auto` resolved; raise a UserError that names `key` if it has none."""
        resolved = self.best_dtype if name == "auto" else name
        if resolved == "fp16" and not self.on_gpu:
            raise UserError(f"{key}: fp16 needs a GPU; use bf16, fp32 or auto")
        return resolved


def resolve(tree: dict[str, Any], updates: int, machine: Machine, where: str) -> dict[str, Any]:
    """Return DeepSpeed's config, checked, complete and without `auto`.

    `tree` is the file without its section `fast_electra`, and `where` its name in messages. A scheduler's
    `total_num_steps` is one more than the number of updates, so that the last one has a learning rate. In one process
    `zero_optimization.overlap_comm` becomes false: there is no communication that could overlap, and DeepSpeed would
    only wait for the whole device in each micro-batch.

    Raises:
        UserError: a key is unknown or a value is wrong.
    """
    tree = copy.deepcopy(tree)
    try:
        _check(SCHEMA, tree, "")
        _check_together(tree)
        if "scheduler" in tree:
            _resolve_scheduler(tree["scheduler"], updates, tree["optimizer"]["params"]["lr"])
        _resolve_precision(tree, machine)
        tree = _without_auto(tree)
        _resolve_batch(tree, machine.processes)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    for section in tree.values():
        for name in {"output_path", "output_file"} & section.keys() if isinstance(section, dict) else ():
            section[name] = section[name] and local_path(section[name])
    tree.setdefault("zero_optimization", {}).setdefault("stage", 2)
    if machine.processes == 1:
        tree["zero_optimization"]["overlap_comm"] = False
    # Gradients of many micro-batches lose their small parts when they are added up in 16 bit.
    tree.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")
    return tree


def _check(model: type[Settings], tree: dict[str, Any], prefix: str) -> None:
    try:
        model.model_validate(tree)
    except ValidationError as error:
        raise UserError(one_line(error, model, prefix)) from None


def _check_together(tree: dict[str, Any]) -> None:
    """Refuse values that are right alone and wrong together. DeepSpeed would find them late, or ignore one of them."""
    optimizer, zero = tree["optimizer"], tree.get("zero_optimization", {})
    adam = optimizer["params"]
    if optimizer["type"] == "Adamax":
        for name in ("torch_adam", "adam_w_mode", "bias_correction", "amsgrad"):
            if name in adam:
                raise UserError(f"optimizer.params.{name} belongs to Adam, and optimizer.type is Adamax: leave it out")
    if adam.get("amsgrad") and not adam.get("torch_adam"):
        raise UserError(
            "optimizer.params.amsgrad: DeepSpeed's fused Adam has no amsgrad; remove it, or set "
            "optimizer.params.torch_adam=true"
        )
    if adam.get("torch_adam") and not adam.get("bias_correction", True):
        raise UserError(
            "optimizer.params.bias_correction must be true with optimizer.params.torch_adam, which always corrects"
        )
    if optimizer["type"] == "AdamW" and not adam.get("adam_w_mode", True):
        raise UserError('optimizer.params.adam_w_mode must be true for optimizer.type AdamW; "Adam" is the other one')
    if adam.get("torch_adam"):
        adam.pop("bias_correction", None)  # torch's Adam does not know the key
    if tree.get("gradient_clipping") and not zero.get("compute_grad_norm", True):
        raise UserError("zero_optimization.compute_grad_norm must be true with gradient_clipping, which needs the norm")
    for key, wrong in (
        ("prescale_gradients", tree.get("prescale_gradients", False)),
        ("gradient_predivide_factor", tree.get("gradient_predivide_factor", 1.0) != 1.0),
    ):
        if wrong and zero.get("reduce_scatter", True):
            raise UserError(f"{key} needs zero_optimization.reduce_scatter=false; leave one of the two out")


def _resolve_scheduler(scheduler: dict[str, Any], updates: int, learning_rate: float) -> None:
    params, schema = scheduler.setdefault("params", {}), SCHEDULER_PARAMS[scheduler["type"]]
    end = updates + (2 if scheduler["type"] == "WarmupCosineLR" else 1)  # the rate is at its end after the last update
    for name, value in zip(AUTOS, (end, learning_rate), strict=True):
        if name in schema.model_fields and params.get(name, "auto") == "auto":
            params[name] = value
    _check(schema, params, "scheduler.params")
    if (total := params.get("total_num_steps", updates)) < updates:
        raise UserError(
            f"scheduler.params.total_num_steps must be a whole number >= fast_electra.updates ({updates:,}) or auto, "
            f"not {total:,}: the learning rate would be at its end for the rest of the run"
        )
    least, most = params.get("warmup_min_lr", 0.0), params.get("warmup_max_lr", learning_rate)
    if most != learning_rate:
        raise UserError(
            f"scheduler.params.warmup_max_lr must be the number in optimizer.params.lr ({learning_rate:g}) or auto, "
            f"not {most:g}, which would replace it: set both to the learning rate that you want"
        )
    if least > most:
        raise UserError(f"scheduler.params.warmup_min_lr must be a number <= warmup_max_lr ({most:g}), not {least:g}")


def _resolve_precision(tree: dict[str, Any], machine: Machine) -> None:
    enabled = []
    for name in ("bf16", "fp16"):
        section = tree.get(name, {})
        if section.get("enabled") == "auto":
            section["enabled"] = machine.best_dtype == name
        if section.get("enabled"):
            enabled.append(machine.dtype(name, f"{name}.enabled"))
    if len(enabled) > 1:
        raise UserError("bf16.enabled and fp16.enabled are both true; keep one")


def _without_auto(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the tree without any `auto` that is left, which means DeepSpeed's default."""
    return {k: _without_auto(v) if isinstance(v, dict) else v for k, v in tree.items() if v != "auto"}


def _resolve_batch(tree: dict[str, Any], processes: int) -> None:
    """Fill in the missing sizes of train_batch_size = micro-batch x accumulation steps x processes, and check them."""
    total, micro, steps = (tree.get(name) for name in SIZES)
    if total is None:
        if micro is None:
            raise UserError("train_batch_size is missing: the sequences of one update over all processes")
        total = micro * (steps or 1) * processes
    if total < processes:
        raise UserError(
            f"train_batch_size {total} is not enough for {processes} processes, which need a sequence each; set it "
            f"to a multiple of {processes}"
        )
    if total > MOST_SEQUENCES:
        raise UserError(f"an update must have at most {MOST_SEQUENCES:,} sequences, not {total:,}; lower {SIZES[1]}")
    if steps is None:
        steps = 1 if micro is None else total // (micro * processes)
    if micro is None:
        micro = total // (steps * processes)
    if micro * steps * processes != total:
        each, left = divmod(total, processes)
        remedy = f"set train_batch_size to a multiple of {processes}"
        if each and not left:
            size = max(size for size in range(1, max(micro, 1) + 1) if each % size == 0)
            remedy = f"e.g. --set train_micro_batch_size_per_gpu={size} and leave gradient_accumulation_steps out"
        raise UserError(
            f"train_batch_size {total} is not train_micro_batch_size_per_gpu {micro} x gradient_accumulation_steps "
            f"{max(steps, 1)} x {processes} processes = {micro * max(steps, 1) * processes}; {remedy}"
        )
    tree.update(zip(SIZES, (total, micro, steps), strict=True))
