"""Tokens per second of one training step: fast_electra beside Hugging Face's ELECTRA, on this CPU, in one run.

    python benchmarks/step_vs_huggingface.py [--recipe tiny small] [--threads 1] [--engine] [--json FILE]

Every contender loads the same batches of real text, has the same sizes, dropout, precision, threads, AdamW and clipping.
They take turns within each round, so that whatever else the machine does hits all of them alike; the ratios are taken
round by round.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from fast_electra import recipes
from fast_electra.batch import TokenBatch
from fast_electra.corpus.building import build_shards
from fast_electra.corpus.loader import Loader, Split
from fast_electra.corpus.sequences import Sequences
from fast_electra.corpus.shards import Shards
from fast_electra.corpus.tokenizer import Tokenizer, train_tokenizer
from fast_electra.curriculum import CurriculumSettings
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.heads import Discriminator, MaskedLanguageModel
from fast_electra.objectives.rtd import RTD
from fast_electra.replacement.auxiliary import Auxiliary
from fast_electra.settings import UserError
from fast_electra.training import ops
from fast_electra.training.precision import DTYPES, best_dtype

try:
    import transformers
    from transformers import ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining
except ImportError:
    sys.exit("this benchmark needs transformers: pip install 'fast_electra[hf]'")

Step = Callable[[TokenBatch], Tensor]  # one update of the weights from one batch; returns its loss

MASK_FRACTION, CLIPPING, TEMPERATURE, SEED = 0.15, 2.0, 1.5, 0
ADAM: dict[str, Any] = {"lr": 5e-4, "betas": (0.9, 0.98), "eps": 1e-6}
WEIGHT_DECAY, ELECTRA_WEIGHT = 0.01, 50.0  # the latter: of the discriminator's loss in the joint objective
# Sequences of a batch, updates of a round, rounds. The first batch is what each of the quickstart's two processes has.
BATCHES = {"tiny": (32, 8, 12), "small": (8, 1, 8)}
OURS, ENGINE = "fast_electra", "fast_electra, DeepSpeed"
JOINT, FROZEN = "Hugging Face, joint ELECTRA", "Hugging Face, frozen"


@dataclass(frozen=True)
class Sizes:
    """What all contenders share. A round is `updates` updates of each contender, one contender after the other."""

    discriminator: EncoderSettings
    auxiliary: EncoderSettings
    length: int
    batch: int
    updates: int
    rounds: int


def sizes(name: str, arguments: argparse.Namespace) -> Sizes:
    batch, updates, rounds = BATCHES[name]
    main, auxiliary = (recipes.recipe(name, objective) for objective in ("rtd", "mlm"))
    vocabulary = {}
    if arguments.tokenizer is not None:
        vocabulary["vocabulary_size"] = Tokenizer.load(arguments.tokenizer).vocabulary_size
    return Sizes(
        discriminator=EncoderSettings(**main["model"] | vocabulary),
        auxiliary=EncoderSettings(**auxiliary["model"] | vocabulary),
        length=main["corpus"]["sequence_length"],
        batch=batch,
        updates=updates,
        rounds=arguments.rounds or rounds,
    )


# --- contenders ---------------------------------------------------------------------------------------------------------


def adam(model: nn.Module) -> AdamW:
    """Fused AdamW: transformers' default, and the fastest that torch has on a CPU. Vectors do not decay."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices, vectors = ([p for p in parameters if (p.dim() > 1) is decayed] for decayed in (True, False))
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return AdamW(groups, **ADAM, fused=True)


def update(loss: Tensor, model: nn.Module, optimizer: AdamW) -> Tensor:
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), CLIPPING)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def objective(size: Sizes, dtype: torch.dtype) -> RTD:
    """Our objective. The auxiliary is untrained, which costs a step what a trained one does."""
    frozen = MaskedLanguageModel(size.auxiliary, seed=1).requires_grad_(False).eval().to(dtype)
    main = Discriminator(size.discriminator, seed=2)
    noise: dict[str, Any] = {"seed": SEED, "mask_fraction": MASK_FRACTION, "mask_id": Tokenizer.mask_id}
    return RTD(main, Auxiliary(frozen, frozen), CurriculumSettings(), **noise)


def fast_electra(size: Sizes, dtype: torch.dtype) -> Step:
    """Ours under plain PyTorch: frozen auxiliary, sampling, discriminator, the figures that are logged of it, Adam."""
    rtd = objective(size, dtype)
    optimizer = adam(rtd.model.train())

    def step(batch: TokenBatch) -> Tensor:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss, _ = rtd.loss(rtd.model, batch, TEMPERATURE)
        return update(loss, rtd.model, optimizer)

    return step


def fast_electra_engine(size: Sizes, dtype: torch.dtype) -> Step:
    """Ours as a launch runs it, in one process: ZeRO-2, DeepSpeed's fused Adam, its inference engine."""
    from fast_electra.training import deepspeed_config, engines

    ops.ensure()
    engines.start_ranks()
    rtd = objective(size, torch.float32)
    name = next(name for name in DTYPES if DTYPES[name] == dtype)
    rtd.distribution.engine = engines.inference_engine(rtd.distribution.model, name)  # type: ignore[attr-defined]
    tree = {
        "train_batch_size": size.batch,
        "gradient_clipping": CLIPPING,
        "optimizer": {"type": "Adam", "params": {**ADAM, "weight_decay": WEIGHT_DECAY}},
        "zero_optimization": {"stage": 2, "overlap_comm": True, "contiguous_gradients": True},
        "bf16": {"enabled": name == "bf16"},
    }
    config = deepspeed_config.resolve(tree, updates=1000, world=1, where="benchmark")
    engine = engines.training_engine(rtd.model, rtd.model.encoder, config)
    engine.train()

    def step(batch: TokenBatch) -> Tensor:
        loss, _ = rtd.loss(engine, batch, TEMPERATURE)
        engine.backward(loss)
        engine.step()
        return loss.detach()

    return step


def huggingface_config(settings: EncoderSettings, length: int, attention: str) -> ElectraConfig:
    return ElectraConfig(
        vocab_size=settings.vocabulary_size,
        embedding_size=settings.embedding_size or settings.hidden_size,
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=settings.ffn_size,
        hidden_dropout_prob=settings.dropout,
        attention_probs_dropout_prob=settings.attention_dropout,
        max_position_embeddings=length,
        pad_token_id=Tokenizer.pad_id,
        attn_implementation=attention,
    )


def random_mask(batch: TokenBatch) -> Tensor:
    """15 % of the positions that hold text, bool [B, L]."""
    text_BL = batch.tokens_BL > Tokenizer.mask_id
    return (torch.rand(text_BL.shape) < MASK_FRACTION) & text_BL


def huggingface(size: Sizes, dtype: torch.dtype, joint: bool, attention: str) -> Step:
    """What one writes with transformers: joint ELECTRA (Clark et al., 2020), or the same with a frozen generator."""
    generator = ElectraForMaskedLM(huggingface_config(size.auxiliary, size.length, attention))
    discriminator = ElectraForPreTraining(huggingface_config(size.discriminator, size.length, attention))
    discriminator.train()
    if joint:
        generator.train()
        discriminator.electra.embeddings = generator.electra.embeddings  # tied, as in the paper
        trained: nn.Module = nn.ModuleList([generator, discriminator])
    else:
        generator.requires_grad_(False).eval().to(dtype)
        trained = discriminator
    optimizer = adam(trained)
    temperature = 1.0 if joint else TEMPERATURE

    def step(batch: TokenBatch) -> Tensor:
        tokens_BL, mask_BL, real_BL = batch.tokens_BL, random_mask(batch), batch.real_BL.long()
        masked_BL = tokens_BL.masked_fill(mask_BL, Tokenizer.mask_id)
        labels_BL = tokens_BL.masked_fill(~mask_BL, -100) if joint else None
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            with torch.set_grad_enabled(joint):
                generated = generator(input_ids=masked_BL, attention_mask=real_BL, labels=labels_BL)
            with torch.no_grad():
                logits_MV = generated.logits[mask_BL].float()
                probabilities_MV = (logits_MV / temperature if temperature != 1.0 else logits_MV).softmax(dim=-1)
                corrupted_BL = tokens_BL.clone()
                corrupted_BL[mask_BL] = torch.multinomial(probabilities_MV, 1).squeeze(1)
                replaced_BL = (corrupted_BL != tokens_BL).long()  # a lucky guess counts as original
            detected = discriminator(input_ids=corrupted_BL, attention_mask=real_BL, labels=replaced_BL)
            loss = generated.loss + ELECTRA_WEIGHT * detected.loss if joint else detected.loss
        update(loss, trained, optimizer)
        return detected.loss.detach()

    return step


def faster_attention(size: Sizes, dtype: torch.dtype, batches: list[TokenBatch]) -> str:
    """The faster of transformers' two attentions here: neither `sdpa`, its default, nor `eager` wins everywhere."""
    seconds: dict[str, float] = {}
    steps = {name: huggingface(size, dtype, True, name) for name in ("sdpa", "eager")}
    for attempt in range(3):  # the first warms up
        for name, step in steps.items():
            began = time.perf_counter()
            for batch in batches:
                step(batch)
            if attempt:
                seconds[name] = min(seconds.get(name, float("inf")), time.perf_counter() - began)
    return min(seconds, key=seconds.__getitem__)


# --- measuring ----------------------------------------------------------------------------------------------------------


def open_loader(arguments: argparse.Namespace, size: Sizes, folder: Path) -> Loader:
    """Batches from the shards on the command line, or from the sample corpus with a tokenizer of the recipe's size."""
    tokenizer, shards = arguments.tokenizer, arguments.shards
    if shards is None:
        tokenizer, shards = folder / "tokenizer", folder / "shards"
        train_tokenizer(["sample"], tokenizer, vocabulary=size.discriminator.vocabulary_size)
        build_shards(["sample"], tokenizer, shards)
    sequences = Sequences(Shards.open(shards), Tokenizer.load(tokenizer), size.length)
    return Loader(sequences, Split(size.batch, accumulation=1), SEED, MASK_FRACTION)


def compete(steps: dict[str, Step], loader: Loader, size: Sizes) -> dict[str, Any]:
    """Seconds of each contender in each round, loading included; all see the same batches. Round 0 warms up."""
    tokens, seconds, losses = [], [], {}
    for round_ in range(size.rounds + 1):
        numbers = range(round_ * size.updates, (round_ + 1) * size.updates)
        row = {}
        for name, step in steps.items():
            began = time.perf_counter()
            seen = 0
            for n in numbers:
                (batch,) = loader.batch(n)
                losses[name] = float(step(batch))
                seen += batch.global_tokens
            row[name] = time.perf_counter() - began
        if round_:
            tokens.append(seen)
            seconds.append(row)
    return {"tokens": tokens, "seconds": seconds, "last_discriminator_loss": losses}


def summary(values: Iterable[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"median": statistics.median(ordered), "lowest": ordered[0], "highest": ordered[-1]}


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All rounds of one recipe, and their summary, which is also printed."""
    size, dtype = sizes(name, arguments), DTYPES[best_dtype()]
    with tempfile.TemporaryDirectory() as folder:
        loader = open_loader(arguments, size, Path(folder))
        attention = arguments.attention or faster_attention(size, dtype, loader.batch(0) * size.updates)
        steps = {OURS: fast_electra(size, dtype)}
        if arguments.engine:
            steps[ENGINE] = fast_electra_engine(size, dtype)
        steps[FROZEN] = huggingface(size, dtype, joint=False, attention=attention)
        steps[JOINT] = huggingface(size, dtype, joint=True, attention=attention)
        main, auxiliary = size.discriminator, size.auxiliary
        print(
            f"\n{name}: {size.batch} sequences of up to {size.length}, vocabulary {main.vocabulary_size:,}, hidden "
            f"{main.hidden_size}, {main.layers} + {auxiliary.layers} layers, dropout {main.dropout}; {best_dtype()}, "
            f"{torch.get_num_threads()} thread(s), {size.rounds} rounds; Hugging Face's attention: {attention}",
            flush=True,
        )
        result = compete(steps, loader, size)
    seconds = result["seconds"]
    speed = {c: summary(t / row[c] for t, row in zip(result["tokens"], seconds, strict=True)) for c in steps}
    ratio = {c: summary(row[c] / row[OURS] for row in seconds) for c in steps}
    print(f"  {'tokens/s, median (lowest to highest)':<56}{'fast_electra is faster by':>28}  last loss")
    for c, figures in speed.items():
        rate = f"{c:<30}{figures['median']:>9,.0f} ({figures['lowest']:,.0f} to {figures['highest']:,.0f})"
        times = f"{ratio[c]['median']:.2f} ({ratio[c]['lowest']:.2f} to {ratio[c]['highest']:.2f})" if c != OURS else ""
        print(f"  {rate:<56}{times:>28}  {result['last_discriminator_loss'][c]:.3f}")
    settings = asdict(size) | {"discriminator": main.model_dump(), "auxiliary": auxiliary.model_dump()}
    settings |= {
        "recipe": name,
        "dtype": best_dtype(),
        "huggingface_attention": attention,
        "mask_fraction": MASK_FRACTION,
    }
    return {"settings": settings, "tokens_per_second": speed, "times_the_seconds_of_ours": ratio, **result}


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    packages = ("torch", "transformers", "deepspeed", "fast_electra")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "flags": sorted(flag for flag in ops.cpu_flags() if flag.startswith(("avx", "amx", "fma"))),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": os.getloadavg(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipe", nargs="+", choices=BATCHES, default=list(BATCHES), help="default: all")
    parser.add_argument("--rounds", type=int, help="default: 12 for tiny, 8 for small")
    parser.add_argument("--threads", type=int, default=1, help="default: 1, as each of the quickstart's processes has")
    parser.add_argument("--engine", action="store_true", help="also run ours through the DeepSpeed engine")
    parser.add_argument("--attention", choices=("sdpa", "eager"), help="Hugging Face's; default: the faster here")
    parser.add_argument("--shards", type=Path, metavar="FOLDER", help="default: built from the sample corpus")
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="the one that made the shards")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep all rounds here")
    arguments = parser.parse_args()
    if (arguments.shards is None) != (arguments.tokenizer is None):
        parser.error("--shards and --tokenizer go together")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    transformers.logging.set_verbosity_error()
    result: dict[str, Any] = {"machine": machine(), "recipes": []}
    print(", ".join(f"{key} {value}" for key, value in result["machine"]["versions"].items()))
    print(f"{result['machine']['cpu']}, {os.cpu_count()} cores; all contenders: AdamW, fused, in this process")
    try:
        result["recipes"] = [measure(name, arguments) for name in arguments.recipe]
    except UserError as error:
        sys.exit(f"error: {error}")
    result["machine"]["load_average_at_end"] = os.getloadavg()
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
        print(f"\n{arguments.json}")
    if arguments.engine:
        from fast_electra.training.engines import stop_ranks

        stop_ranks()


if __name__ == "__main__":
    main()
