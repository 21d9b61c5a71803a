"""Try odd values of every key of DeepSpeed's part: whatever the config takes must train. Prints what did not.

Started by test_accepted_values.py, because the process group is one of the whole process.
"""

import copy
import json
import sys
from collections.abc import Iterator
from typing import Any

import torch

from fast_electra.deepspeed_config import Machine, resolve
from fast_electra.deepspeed_schema import SCHEDULER_PARAMS, SECTIONS, AdamParams
from fast_electra.settings import UserError, settings_in
from fast_electra.training.engines import start_ranks, training_engine

BASE: dict[str, Any] = {
    "train_batch_size": 4,
    "optimizer": {"type": "Adam", "params": {"lr": 0.01, "torch_adam": True}},
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 2, "reduce_bucket_size": 1000, "allgather_bucket_size": 1000},
}
VALUES = [
    True,
    False,
    "yes",
    "fp16",
    -1,
    0,
    1,
    0.5,
    6,
    10**30,
    float("inf"),
    float("nan"),
    None,
    [],
    [1],
    {},
    {"x": 1},
]
UNINSTALLED = ("tensorboard", "wandb", "comet")  # each needs a package


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """A key with a value, and the config that has it."""
    keys = [(name,) for name, kind in SECTIONS.items() if not settings_in(kind)]
    for name, kind in SECTIONS.items():
        if (model := next(iter(settings_in(kind)), None)) is not None and name not in UNINSTALLED:
            keys += [(name, field.alias or own) for own, field in model.model_fields.items()]
    keys += [("optimizer", "params", name) for name in AdamParams.model_fields]
    trees = [(key, BASE) for key in keys]
    for scheduler, params in SCHEDULER_PARAMS.items():
        tree = BASE | {"scheduler": {"type": scheduler, "params": {}}}
        trees += [(("scheduler", "params", name), tree) for name in params.model_fields]
    for key, tree in trees:
        for value in VALUES:
            changed = copy.deepcopy(tree)
            section = changed
            for name in key[:-1]:
                section = section.setdefault(name, {})
            section[key[-1]] = value
            yield f"{'.'.join(key)}={value!r}", changed


def train(tree: dict[str, Any]) -> None:
    """Two updates of the smallest model."""
    engine = training_engine(torch.nn.Linear(8, 8), resolve(tree, 10, Machine(), "x"))
    engine.train()
    for _ in range(2):
        loss = engine(torch.ones(4, 8, dtype=engine.module.weight.dtype)).float().square().mean()
        engine.backward(loss)
        engine.step()


if __name__ == "__main__":
    start_ranks()
    taken, refused, failed = 0, 0, []
    for name, tree in cases():
        try:
            train(tree)
            taken += 1
        except UserError:
            refused += 1
        except Exception as error:
            failed.append(f"{name}: {type(error).__name__}: {error}")
    sys.stdout.write("\n" + json.dumps({"taken": taken, "refused": refused, "failed": failed}) + "\n")
