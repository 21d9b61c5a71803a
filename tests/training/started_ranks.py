"""Ranks that `test_engines.py` starts: they agree on an optimizer, train three steps, and lose one of them.

    python started_ranks.py FOLDER          alone, without a launcher
    deepspeed ... started_ranks.py FOLDER

Each writes FOLDER/RANK.json.
"""

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import groups
from torch.distributed.distributed_c10d import _get_default_group

from fast_electra import deepspeed_config
from fast_electra.deepspeed_config import Machine
from fast_electra.hosts import operators
from fast_electra.training import engines

CONFIG = {
    "train_batch_size": 2,
    "optimizer": {"type": "Adam", "params": {"lr": 1e-3}},
    "zero_optimization": {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 1000},
}


def main() -> None:
    operators.ensure()
    ranks = engines.start_ranks()
    config = deepspeed_config.resolve(CONFIG, 10, Machine(ranks.world), "started_ranks.py")
    params = config["optimizer"]["params"]
    found: dict[str, Any] = {"world": ranks.world, "port": int(os.environ["MASTER_PORT"])}

    operators.choose_adam(params, ranks)
    found["torch_adam"] = params.get("torch_adam", False)
    ready = operators.ops_ready
    operators.ops_ready = lambda names=None: ranks.rank != 1 and ready(names)  # as if rank 1's host could not build
    operators.choose_adam(params, ranks)
    found["torch_adam_if_one_is_not_ready"] = params.get("torch_adam", False)

    engine = engines.training_engine(torch.nn.Linear(4, 1), config)
    for _ in range(3):
        engine.backward(engine(torch.ones(1, 4)).sum())
        engine.step()
    found["optimizer"] = type(engine.optimizer.optimizer).__name__
    found["timer"], found["timed"] = engine.tput_timer.config.enabled, engine.tput_timer.total_elapsed_time
    found["given"], found["overlap"] = config["zero_optimization"]["overlap_comm"], engine.optimizer.overlap_comm
    both = (_get_default_group(), groups._get_data_parallel_group())
    found["limits"] = [group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in both]

    if ranks.world > 1:
        engines.limit_waits(timedelta(seconds=2))
        began = time.monotonic()
        if ranks.rank == 0:
            try:
                engines.wait_for_ranks()
            except RuntimeError as error:
                found["error"] = str(error)
        else:
            time.sleep(8)  # as a rank that is lost
        found["waited"] = time.monotonic() - began
    Path(sys.argv[-1], f"{ranks.rank}.json").write_text(json.dumps(found))
    os._exit(0)


main()
