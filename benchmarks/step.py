"""What one micro-batch of replaced-token detection costs on this device, setting by setting. It needs no corpus.

    python benchmarks/step.py [--recipe base] [--settings NAME ...] [--profile NAME ...] [--json FILE]

A setting changes one thing at a time: activation checkpointing, sequences at a time, attention, compiled layers, CUDA
graphs, DeepSpeed's engine, or NVIDIA's apex. `--profile` adds a table of the setting's kernels. The figures are written
after each setting, so a run that is cut off leaves the settings before.
"""

import argparse
import copy
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from contenders.common import ADAM, CLIPPING, DEVICE, MASK, MASK_FRACTION, SEED, TEMPERATURE, UNK, WEIGHT_DECAY, machine
from contenders.plain import Drawn, Plain, Update
from contenders.trace import kernels, print_kernels, seconds
from torch import Tensor

from fast_electra import deepspeed_config, randomness, recipes
from fast_electra.batch import Layout, TokenBatch, masked_counts
from fast_electra.corruption import Masking, mask
from fast_electra.cost.flops import Lengths, discriminator_forward, masked_lm_forward, trained
from fast_electra.cost.measure import known_gpu
from fast_electra.curriculum import CurriculumSettings
from fast_electra.hosts import operators
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.heads import Discriminator, MaskedLanguageModel
from fast_electra.objectives.rtd import RTD
from fast_electra.replacement.auxiliary import Temperature
from fast_electra.settings import UserError
from fast_electra.training import engines
from fast_electra.training.machine import best_dtype, this_machine
from fast_electra_kernels import sample_with_statistics

CUDA = DEVICE.type == "cuda"
WARM_UP = 2  # updates
SHORTEST = 0.55  # of the ragged lengths, as a share of the longest; the mean is 0.775


class Setting(NamedTuple):
    """What a setting changes. The first two are in units of `--sequences`."""

    sequences: int = 1  # of a micro-batch
    update: int = 8  # sequences of an update: 64 x 32 is the paper's batch
    checkpointing: bool = False
    attention: str = "auto"  # of the main model
    compiled: bool = False  # torch.compile of every layer of the main model
    graphs: bool = True  # CUDA graphs of the auxiliary
    engine: bool = True  # DeepSpeed's engine; otherwise plain PyTorch with the same precisions
    apex: bool = False  # NVIDIA's norms and Adam, where they are installed
    full: bool = False  # all sequences have the full length; otherwise they are ragged
    auxiliary: bool = True  # otherwise the draws are there already, as with an offline store


SETTINGS = {
    "checkpointing": Setting(checkpointing=True),
    "default": Setting(),
    "plain": Setting(engine=False),
    "stored": Setting(auxiliary=False),
    "compiled": Setting(compiled=True),
    "sdpa": Setting(attention="sdpa"),
    "full": Setting(full=True),
    "many": Setting(sequences=4),
    "many-stored": Setting(sequences=4, auxiliary=False),
    "many-compiled": Setting(sequences=4, compiled=True),
    "many-sdpa": Setting(sequences=4, attention="sdpa"),
    "many-plain": Setting(sequences=4, engine=False),
    "whole": Setting(sequences=4, update=64),
    "whole-plain": Setting(sequences=4, update=64, engine=False),
    "matmul": Setting(attention="matmul"),
    "eager-auxiliary": Setting(graphs=False),
    "apex": Setting(apex=True),
    "many-apex": Setting(sequences=4, apex=True),
}


def main() -> None:
    """Measure the parts of the auxiliary's work, then every setting; print a line for each."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--recipe", default="base", choices=recipes.NAMES)
    parser.add_argument("--vocabulary", type=int, help="default: the recipe's")
    parser.add_argument("--sequences", type=int, default=32, help="of a micro-batch; default: 32")
    parser.add_argument("--updates", type=int, default=3, help="timed ones; default: 3")
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, default=list(SETTINGS), help="default: all")
    parser.add_argument("--profile", nargs="*", choices=SETTINGS, default=[], help="settings whose kernels are listed")
    parser.add_argument("--parts", action=argparse.BooleanOptionalAction, default=True, help="of the auxiliary's work")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep all figures here")
    arguments = parser.parse_args()
    operators.ensure(fused_adam=CUDA)
    bench = Bench(arguments)
    if arguments.parts:
        bench.parts()
    for name in arguments.settings:
        bench.setting(name, SETTINGS[name], profiled=name in arguments.profile)
    engines.stop_ranks()


class Bench:
    """Models that all settings share, and the figures so far."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Build the models of the recipe with random weights."""
        self.arguments, self.ranks, self.dtype = arguments, engines.start_ranks(), best_dtype()
        sizes = {objective: recipes.recipe(arguments.recipe, objective) for objective in ("rtd", "mlm")}
        more = {"vocabulary_size": arguments.vocabulary} if arguments.vocabulary else {}
        self.main, self.auxiliary = (EncoderSettings(**sizes[name]["model"] | more) for name in ("rtd", "mlm"))
        self.length = sizes["rtd"]["corpus"]["sequence_length"]
        self.gpu = known_gpu(torch.cuda.get_device_name()) if CUDA else None
        self.frozen = MaskedLanguageModel(self.auxiliary, 1).to(self.ranks.device)
        self.template = Discriminator.new(self.main, 0)
        self.graphs = engines.inference_engine(self.frozen, self.dtype)
        self.eager = engines.inference_engine(self.frozen, self.dtype, cuda_graph=False)
        self.result: dict[str, Any] = {"machine": machine("torch", "deepspeed"), "dtype": self.dtype, "settings": []}
        self.result |= {"shape": {**vars(arguments), "json": None, "length": self.length}}

    def batch(self, sequences: int, seed: int, full: bool = False, micro_batches: int = 1) -> TokenBatch:
        """Return random tokens in sequences of the full length, or of lengths between SHORTEST and 1 of it."""
        generator = torch.Generator().manual_seed(seed)
        share_B = SHORTEST + (1 - SHORTEST) * torch.rand(sequences, generator=generator)
        share_B[0] = 1.0
        lengths_B = torch.full_like(share_B, self.length).long() if full else (self.length * share_B).long()
        tokens, masked = int(lengths_B.sum()), int(masked_counts(lengths_B, MASK_FRACTION).sum())
        return TokenBatch(
            tokens_T=torch.randint(5, self.main.vocabulary_size, (tokens,), generator=generator),
            layout=Layout.of(lengths_B, randomness.key(SEED, seed, torch.arange(sequences))),
            samples_B=torch.arange(sequences) + 1000 * seed,
            global_tokens=tokens * micro_batches,
            global_masked=masked * micro_batches,
        )

    def parts(self) -> None:
        """Time the auxiliary's forward pass in several forms, drawing, masking, and the bare product of the head."""
        batch = self.batch(self.arguments.sequences, 0).to(self.ranks.device)
        masking = Masking(MASK_FRACTION, MASK)
        masked = mask(batch, masking)
        given = (masked.tokens_T, batch.layout, masked.positions_M)
        compiled = copy.deepcopy(self.frozen)
        for layer in compiled.encoder.layers:
            layer.compile()
        compiled_graphs = engines.inference_engine(compiled, self.dtype)
        hidden_ME, (weight_VE, bias_V) = self.graphs.hidden(*given), self.frozen.head
        keys_M, original_M = masked.keys_M, masked.original_M
        work: dict[str, Callable[[], Any]] = {
            "auxiliary, replayed": lambda: self.graphs.hidden(*given),
            "auxiliary, eager": lambda: self.eager.hidden(*given),
            "auxiliary, compiled layers, replayed": lambda: compiled_graphs.hidden(*given),
            "drawing": lambda: sample_with_statistics(
                hidden_ME, weight_VE, bias_V, scale=1 / TEMPERATURE, keys_M=keys_M, original_M=original_M
            ),
            "product with the head": lambda: hidden_ME @ weight_VE.t(),
            "masking": lambda: mask(batch, masking),
        }
        for call in work.values():
            call()
        times = {name: [seconds(call) for _ in range(10)] for name, call in work.items()}
        self.result["parts_ms"] = {name: 1e3 * statistics.median(values) for name, values in times.items()}
        equal = bool(torch.equal(self.graphs.hidden(*given), self.eager.hidden(*given)))
        self.result["replayed_equals_eager"] = equal
        self._write({"parts_ms": self.result["parts_ms"], "replayed_equals_eager": equal})

    def setting(self, name: str, setting: Setting, profiled: bool) -> None:
        """Time the updates of one setting, and count the memory of its tensors."""
        sequences = self.arguments.sequences * setting.sequences
        micro_batches = setting.update // setting.sequences
        row: dict[str, Any] = {"setting": name, **setting._asdict(), "sequences": sequences}
        row["micro_batches"] = micro_batches
        if CUDA:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            update, engine = self._update(setting, sequences, micro_batches)
            began = time.perf_counter()
            losses = [float(update()) for _ in range(WARM_UP)]
            row["first_updates_seconds"] = time.perf_counter() - began
            times = [seconds(update) / micro_batches for _ in range(self.arguments.updates)]
            row |= self._speed(setting, sequences, times) | {"losses": losses}
            row["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9 if CUDA else None
            if profiled:
                row["kernels"] = kernels(update)
            if setting.engine:
                engine.destroy()
            del update, engine
        except (torch.OutOfMemoryError, UserError) as error:
            row["error"] = str(error)[:200]
        gc.collect()
        self.result["settings"].append(row)
        self._write(row)

    def _update(self, setting: Setting, sequences: int, micro_batches: int) -> tuple[Update, Any]:
        """Return a function that does an update, and DeepSpeed's engine or what takes its place."""
        device = self.ranks.device
        model = copy.deepcopy(self.template).to(device)
        changes = {"activation_checkpointing": setting.checkpointing, "attention": setting.attention}
        model.encoder.settings = self.main.model_copy(update=changes)
        if setting.attention == "matmul":
            for layer in model.encoder.layers:
                layer.backend = "matmul"
        if setting.compiled:
            for layer in model.encoder.layers:
                layer.compile()
        masking = Masking(MASK_FRACTION, MASK)
        batches = [self.batch(sequences, seed, setting.full, micro_batches) for seed in range(micro_batches)]
        rtd = RTD(model, Temperature(self.graphs if setting.graphs else self.eager, UNK), CurriculumSettings(), masking)
        if not setting.auxiliary:
            masked = [mask(batch.to(device), masking) for batch in batches]
            rtd.distribution = Drawn([rtd.distribution.sample(each, TEMPERATURE) for each in masked])
        engine: Any
        if setting.engine:
            engine = self._engine(model, micro_batches, setting.apex)
        else:
            engine = Plain(model.to(engines.DTYPES[self.dtype]), micro_batches)
        called = engine if setting.engine else model
        called.train()
        share = micro_batches if setting.engine else 1  # DeepSpeed divides by it

        def update() -> Tensor:
            total = torch.zeros((), device=device)
            for batch in batches:
                loss, _ = rtd.loss(called, batch.to(device), TEMPERATURE)
                engine.backward(loss * share)
                engine.step()
                total += loss.detach()
            return total

        return update, engine

    def _engine(self, model: Discriminator, micro_batches: int, apex: bool) -> Any:
        params = {**ADAM, "weight_decay": WEIGHT_DECAY}
        tree = {
            "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": micro_batches,
            "gradient_clipping": CLIPPING, "optimizer": {"type": "Adam", "params": params},
            "zero_optimization": {"stage": 2, "contiguous_gradients": True, "reduce_bucket_size": 50_000_000},
            "bf16": {"enabled": self.dtype == "bf16"}, "fp16": {"enabled": self.dtype == "fp16"},
        }  # fmt: skip
        config = deepspeed_config.resolve(tree, updates=1000, machine=this_machine(), where="benchmark")
        operators.choose_adam(config["optimizer"]["params"], self.ranks)
        return engines.training_engine(model, config, apex=apex)

    def _speed(self, setting: Setting, sequences: int, times: list[float]) -> dict[str, Any]:
        """Return the figures of a micro-batch. Useful FLOPs are those of all its tokens, without recomputation."""
        each = statistics.median(times)
        batches = [self.batch(sequences, seed, setting.full) for seed in range(setting.update // setting.sequences)]
        lengths = Lengths.of(torch.cat([batch.layout.lengths_B for batch in batches]), MASK_FRACTION)
        flops = sum(trained(discriminator_forward(self.main, lengths), False).values())
        if setting.auxiliary:
            flops += sum(masked_lm_forward(self.auxiliary, lengths).values())
        peak = None if self.gpu is None else self.gpu.peak(self.dtype)
        return {
            "ms": 1e3 * each, "all_ms": [1e3 * second for second in times],
            "tokens_per_second": sequences * lengths.mean / each,
            "mfu": None if peak is None else sequences * flops / each / peak,
        }  # fmt: skip

    def _write(self, line: dict[str, Any]) -> None:
        print(json.dumps({k: v for k, v in line.items() if k != "kernels"}), flush=True)
        if "kernels" in line:
            print_kernels(line["kernels"])
        if self.arguments.json:
            self.arguments.json.parent.mkdir(parents=True, exist_ok=True)
            self.arguments.json.write_text(json.dumps(self.result, indent=1) + "\n")


if __name__ == "__main__":
    main()
