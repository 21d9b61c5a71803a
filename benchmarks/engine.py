"""What DeepSpeed's engine adds to a step in one process, beside a plain PyTorch loop, and what the metrics cost.

    python benchmarks/engine.py [--recipe tiny small] [--dtype fp32 bf16] [--rounds 15] [--json FILE]

All contenders have the same batches of real text, sizes, precision, Adam and clipping, one micro-batch an update, and
take turns in each round. On a CPU the time is that of this process alone: other processes can hardly change it.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from contenders import ours
from contenders.common import ADAM, BATCHES, CLIPPING, DEVICE, TEMPERATURE, WEIGHT_DECAY, Sizes, machine, sizes, summary
from contenders.plain import Plain
from contenders.trace import synchronize
from step_vs_huggingface import open_loader

from fast_electra import deepspeed_config
from fast_electra.batch import TokenBatch
from fast_electra.hosts import operators
from fast_electra.objectives import detection
from fast_electra.objectives.rtd import replaced_loss
from fast_electra.replacement.auxiliary import Auxiliary
from fast_electra.training import engines
from fast_electra.training.machine import best_dtype, this_machine

PLAIN, BEFORE, NOW, TORCH = "plain PyTorch", "DeepSpeed as it comes", "fast_electra", "fast_electra, torch_adam"
PARTS = ("forward", "backward", "update")
clock = time.perf_counter if DEVICE.type == "cuda" else time.process_time
Timed = Callable[[TokenBatch], list[float]]  # one update; the seconds of PARTS


def main() -> None:
    """Measure every recipe in every precision, print a table for each, and keep all rounds."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--recipe", nargs="+", choices=BATCHES, default=list(BATCHES), help="default: all")
    parser.add_argument("--dtype", nargs="+", choices=engines.DTYPES, default=sorted({"fp32", best_dtype()}))
    parser.add_argument("--rounds", type=int, default=15, help="default: 15, after one that warms up")
    parser.add_argument("--shards", type=Path, metavar="FOLDER", help="default: built from the sample corpus")
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="the one that made the shards")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep all rounds here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    operators.ensure()
    engines.start_ranks()
    result: dict[str, Any] = {"machine": machine("torch", "deepspeed"), "clock": clock.__name__, "settings": []}
    for name in arguments.recipe:
        size = sizes(name, arguments.tokenizer)
        with tempfile.TemporaryDirectory() as folder:
            loader = open_loader(arguments, size, Path(folder))
            batches = [loader.batch(n)[0].to(DEVICE) for n in range(4)]
        for dtype in arguments.dtype:
            row = compare(size, dtype, batches, arguments.rounds)
            print_row(f"{name}, {dtype}, {size.batch} sequences of up to {size.length}", row)
            result["settings"].append({"recipe": name, "dtype": dtype, "batch": size.batch, **row})
            if arguments.json:
                arguments.json.parent.mkdir(parents=True, exist_ok=True)
                arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    engines.stop_ranks()


def compare(size: Sizes, dtype: str, batches: list[TokenBatch], rounds: int) -> dict[str, Any]:
    """Return each contender's milliseconds by part, in each round and as medians, and its ratios to plain PyTorch."""
    contenders = {PLAIN: contender(size, dtype, None)}
    spare, engines.spare_reduction = engines.spare_reduction, lambda optimizer: None
    contenders[BEFORE] = contender(size, dtype, False)
    engines.spare_reduction = spare
    contenders |= {NOW: contender(size, dtype, False), TORCH: contender(size, dtype, True)}
    all_ms: list[dict[str, list[float]]] = []
    for round_ in range(rounds + 1):
        row = {}
        for name, step in contenders.items():
            times = [step(batches[n % len(batches)]) for n in range(size.updates)]
            row[name] = [1e3 * statistics.mean(part) for part in zip(*times, strict=True)]
        if round_:
            all_ms.append(row)
    medians = {
        name: {part: statistics.median(row[name][n] for row in all_ms) for n, part in enumerate(PARTS)}
        for name in contenders
    }
    ratios = {name: summary(sum(row[name]) / sum(row[PLAIN]) for row in all_ms) for name in contenders}
    return {"ms": medians, "ratio": ratios, "metrics_ms": metrics(size, batches[0]), "all_ms": all_ms}


def contender(size: Sizes, dtype: str, torch_adam: bool | None) -> Timed:
    """Return a timed update, by the engine with an Adam, or (None) by plain PyTorch."""
    rtd = ours.objective(size, torch.float32)
    assert isinstance(rtd.distribution, Auxiliary)
    rtd.distribution.model = engines.inference_engine(rtd.distribution.model, dtype)
    called: Any = rtd.model
    if torch_adam is None:
        trainer: Any = Plain(rtd.model.to(engines.DTYPES[dtype]), 1)
    else:
        tree = {
            "train_batch_size": size.batch, "gradient_clipping": CLIPPING,
            "optimizer": {"type": "Adam", "params": {**ADAM, "weight_decay": WEIGHT_DECAY, "torch_adam": torch_adam}},
            "zero_optimization": {"stage": 2, "contiguous_gradients": True, "reduce_bucket_size": 50_000_000},
            "bf16": {"enabled": dtype == "bf16"}, "fp16": {"enabled": dtype == "fp16"},
        }  # fmt: skip
        config = deepspeed_config.resolve(tree, updates=1000, machine=this_machine(), where="benchmark")
        called = trainer = engines.training_engine(rtd.model, config)
    called.train()

    def update(batch: TokenBatch) -> list[float]:
        marks = [now()]
        loss, _ = rtd.loss(called, batch, TEMPERATURE)
        marks.append(now())
        trainer.backward(loss)
        marks.append(now())
        trainer.step()
        marks.append(now())
        return [after - before for before, after in pairwise(marks)]

    return update


def metrics(size: Sizes, batch: TokenBatch) -> float:
    """Return the milliseconds that the figures of `metrics.jsonl` take in a micro-batch."""
    rtd = ours.objective(size, torch.float32)
    judged = rtd.judge(rtd.model, batch, TEMPERATURE)
    loss_sum = replaced_loss(judged)
    times = []
    for _ in range(20):
        began = now()
        detection.detection_sums(judged, loss_sum)
        times.append(now() - began)
    return 1e3 * statistics.median(times)


def now() -> float:
    """Return the time in seconds, when a GPU has done all that it was given."""
    synchronize()
    return clock()


def print_row(title: str, row: dict[str, Any]) -> None:
    """Print the medians, and the median, lowest and highest ratio."""
    print(f"\n{title}; metrics: {row['metrics_ms']:.2f} ms\n  {'ms':<26}" + "".join(f"{part:>10}" for part in PARTS))
    for name, parts in row["ms"].items():
        ratio = row["ratio"][name]
        times = f"{ratio['median']:.3f} ({ratio['lowest']:.3f} to {ratio['highest']:.3f}) times {PLAIN}"
        print(f"  {name:<26}" + "".join(f"{ms:>10.2f}" for ms in parts.values()) + f"   {times}", flush=True)


if __name__ == "__main__":
    main()
