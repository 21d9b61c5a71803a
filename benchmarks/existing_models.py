"""Seconds of a training step with existing models on both sides: fast_electra compared with plain transformers.

    python benchmarks/existing_models.py [--vocabulary 30522 128000] [--dtype fp32 bf16] [--rounds 9] [--json FILE]

The main model is BERT, the frozen auxiliary ELECTRA's generator. All contenders open the same two directories, see the
same batches of real text, and have the same precision, thread, Adam and clipping. They take turns, and begin every
other round in the opposite order. Ours is the update of a real run, through DeepSpeed. Ratios are those of each round.
"""

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from contenders.common import (
    CLIPPING,
    DEVICE,
    MASK,
    SEED,
    TEMPERATURE,
    Step,
    adam,
    autocast,
    machine,
    summary,
    update,
)
from contenders.huggingface import drawn, mask, padded
from contenders.trace import synchronize
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn

from fast_electra import config, parts
from fast_electra.batch import TokenBatch
from fast_electra.corpus.sequences import Sequences
from fast_electra.hosts import operators
from fast_electra.text.build import build_shards
from fast_electra.text.inputs import expand
from fast_electra.text.readers import read_documents
from fast_electra.training import engines
from fast_electra.training.machine import best_dtype, this_machine

OURS, ROWS, ALL = "fast_electra, DeepSpeed", "transformers, masked rows", "transformers, all logits"
INVERSE = "transformers, masked rows, quick draw"
PRESET = Path(__file__).parents[1] / "ds_configs" / "continue.json"
MAIN = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
AUXILIARY = MAIN | {"num_hidden_layers": 2, "embedding_size": 128}
TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}


def main() -> None:
    """Measure every vocabulary in every precision, print the ratios, and keep all rounds."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--vocabulary", nargs="+", type=int, default=[30_522, 128_000], help="default: both")
    parser.add_argument("--dtype", nargs="+", choices=engines.DTYPES, default=sorted({"fp32", best_dtype()}))
    parser.add_argument("--batch", type=int, default=16, help="sequences of an update; default: 16")
    parser.add_argument("--length", type=int, default=128, help="of the longest sequence; default: 128")
    parser.add_argument("--rounds", type=int, default=9, help="default: 9, after one that warms up")
    parser.add_argument("--tiny", action="store_true", help="much smaller models, to see that the script runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep all rounds here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    operators.ensure()
    ranks = engines.start_ranks()
    result: dict[str, Any] = {"machine": machine("torch", "transformers", "deepspeed"), "settings": []}
    for size in arguments.vocabulary:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), size, arguments)
            for dtype in arguments.dtype:
                result["settings"] += compare(Path(folder), size, dtype, arguments, ranks)
                result["machine"]["load_average_at_end"] = os.getloadavg()
                if arguments.json:
                    arguments.json.parent.mkdir(parents=True, exist_ok=True)
                    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
                gc.collect()
    engines.stop_ranks()


def write(folder: Path, size: int, arguments: argparse.Namespace) -> None:
    """Write two models of a vocabulary, and shards of the sample corpus: each of its paragraphs is a document."""
    documents = islice(read_documents(expand(["sample"]), "text"), 30 if arguments.tiny else None)
    text = [document.text for document in documents]
    (folder / "text.txt").write_text("\n".join(text))
    counts = Counter(word for part in text for word in part.split())
    words = [word for word, _ in counts.most_common(size - len(SPECIAL))]
    words = SPECIAL + words + [f"filler {n}" for n in range(size - len(SPECIAL) - len(words))]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    frame = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **names)
    more = {"vocab_size": size, "max_position_embeddings": max(512, arguments.length)}
    torch.manual_seed(SEED)
    made: dict[str, Any] = {
        "main": transformers.BertModel(transformers.BertConfig(**MAIN | more | (TINY if arguments.tiny else {}))),
        "auxiliary": transformers.ElectraForMaskedLM(
            transformers.ElectraConfig(**AUXILIARY | more | (TINY if arguments.tiny else {}))
        ),
    }
    for name, model in made.items():
        model.save_pretrained(folder / name)
        fast.save_pretrained(folder / name)
    build_shards([folder / "text.txt"], folder / "main", folder / "shards", document_per_line=True)


def compare(
    folder: Path, size: int, dtype: str, arguments: argparse.Namespace, ranks: engines.Ranks
) -> list[dict[str, Any]]:
    """Return the rounds and ratios with sequences of real lengths, and with full ones only."""
    run = build(folder, dtype, arguments, ranks)
    chosen = {ROWS: (False, drawn), INVERSE: (False, quickly_drawn), ALL: (True, drawn)}
    others = {name: plain(folder, engines.DTYPES[dtype], *choice) for name, choice in chosen.items()}
    rows = []
    for full in (False, True):
        if full:
            run = replace(run, loader=replace(run.loader, sequences=only_full(run.loader.sequences)))
        rounds = compete(run, others, arguments.rounds)
        row = {"vocabulary": size, "dtype": dtype, "batch": arguments.batch, "length": arguments.length, "full": full}
        row["mean_length"] = statistics.mean(seen["tokens"] for seen in rounds) / arguments.batch
        row |= {"models": {"main": "bert", "auxiliary": "electra"}, "rounds": rounds}
        row["ours_over_masked_rows"] = ratio(rounds, OURS, ROWS)
        row["ours_over_quick_draw"] = ratio(rounds, OURS, INVERSE)
        row["all_logits_over_ours"] = ratio(rounds, ALL, OURS)
        show(row)
        rows.append(row)
    return rows


def compete(run: parts.PretrainingRun, others: dict[str, Step], rounds: int) -> list[dict[str, Any]]:
    """Return the contenders' seconds in each round. All see the same batch, loading included; round 0 warms up."""

    def work(name: str, n: int) -> object:
        return run.update(n) if name == OURS else others[name](run.loader.batch(n - 1)[0].to(DEVICE))

    found = []
    for n in range(1, rounds + 2):
        row: dict[str, Any] = {"tokens": run.loader.batch(n - 1)[0].global_tokens}
        for name in [OURS, *others][:: 1 if n % 2 else -1]:
            row[name] = seconds(partial(work, name, n))
        found.append(row)
    return found[1:]


def build(folder: Path, dtype: str, arguments: argparse.Namespace, ranks: engines.Ranks) -> parts.PretrainingRun:
    """Return a run by the preset for existing models, with one micro-batch an update."""
    section = {"run": folder / "run", "model.huggingface": folder / "main", "corpus.shards": folder / "shards"}
    section |= {"corpus.tokenizer": folder / "shards", "corpus.sequence_length": arguments.length}
    section |= {"auxiliary.huggingface": folder / "auxiliary", "auxiliary.dtype": dtype, "updates": 1000}
    changed = {f"fast_electra.{key}": value for key, value in section.items()}
    changed |= {"train_batch_size": arguments.batch, "train_micro_batch_size_per_gpu": arguments.batch}
    changed |= {"fast_electra.auxiliary.accept_weak": "true", "gradient_clipping": CLIPPING}
    changed |= {f"{name}.enabled": str(name == dtype).lower() for name in ("bf16", "fp16")}
    resolved = config.load(PRESET, [f"{key}={value}" for key, value in changed.items()], this_machine())
    operators.choose_adam(resolved.deepspeed["optimizer"]["params"], ranks)
    return parts.build(resolved, ranks)


def plain(folder: Path, dtype: torch.dtype, all_logits: bool, draw: Callable[[Tensor, float], Tensor]) -> Step:
    """Return a step as a careful user of transformers writes it.

    Args:
        folder: holds the models.
        dtype: precision of the frozen auxiliary, and of autocast around the main model.
        all_logits: call the auxiliary as it is; if False, its head reads the masked positions only.
        draw: tokens from logits at a temperature.
    """
    auxiliary: Any = transformers.AutoModelForMaskedLM.from_pretrained(folder / "auxiliary", dtype=dtype)
    auxiliary.requires_grad_(False).eval().to(DEVICE)
    encoder = transformers.AutoModel.from_pretrained(folder / "main", add_pooling_layer=False, dtype=torch.float32)
    head = nn.Linear(encoder.config.hidden_size, 1)
    both = nn.ModuleList([encoder, head]).train().to(DEVICE)
    optimizer = adam(both)

    @torch.no_grad()
    def corrupted(tokens_BL: Tensor, real_BL: Tensor) -> Tensor:
        mask_BL = mask(tokens_BL)
        inputs = {"input_ids": tokens_BL.masked_fill(mask_BL, MASK), "attention_mask": real_BL}
        if all_logits:
            logits_MV = auxiliary(**inputs).logits[mask_BL]
        else:
            states_MD = auxiliary.electra(**inputs).last_hidden_state[mask_BL]
            logits_MV = auxiliary.generator_lm_head(auxiliary.generator_predictions(states_MD))
        return tokens_BL.masked_scatter(mask_BL, draw(logits_MV, TEMPERATURE))

    def step(batch: TokenBatch) -> Tensor:
        tokens_BL, real_BL = padded(batch)
        corrupted_BL = corrupted(tokens_BL, real_BL)
        with autocast(dtype):
            states_BLD = encoder(input_ids=corrupted_BL, attention_mask=real_BL).last_hidden_state
            logits_BL = head(states_BLD)[..., 0]
        real, replaced_BL = real_BL.bool(), (corrupted_BL != tokens_BL).float()
        loss = F.binary_cross_entropy_with_logits(logits_BL[real].float(), replaced_BL[real])
        update(loss, both, optimizer)
        return loss.detach()

    return step


def quickly_drawn(logits_MV: Tensor, temperature: float) -> Tensor:
    """Return what `drawn` does by one random number a row: torch.multinomial takes one for each logit."""
    sums_MV = (logits_MV.float() / temperature).softmax(dim=-1).cumsum(dim=-1)
    number_M1 = torch.rand(len(sums_MV), 1, device=sums_MV.device) * sums_MV[:, -1:]
    return torch.searchsorted(sums_MV, number_M1).squeeze(1).clamp(max=sums_MV.shape[1] - 1)


def only_full(sequences: Any) -> Sequences:
    """Return the sequences of exactly the longest length."""
    found = Sequences(sequences.shards, sequences.tokenizer, sequences.length)
    full = (found.lengths(torch.arange(len(found))) == found.length).nonzero()[:, 0]
    assert len(full), f"no sequence has {found.length} tokens"
    found.order = lambda _, *span: (full[torch.arange(*span) % len(full)], torch.arange(*span) // len(full))  # type: ignore[method-assign]
    return found


def seconds(work: Callable[[], object]) -> dict[str, float]:
    """Return how long the work takes by each clock."""
    synchronize()
    began = {name: clock() for name, clock in CLOCKS.items()}
    work()
    synchronize()
    return {name: clock() - began[name] for name, clock in CLOCKS.items()}


def ratio(rounds: list[dict[str, Any]], above: str, below: str) -> dict[str, dict[str, float]]:
    """Return the median, lowest and highest ratio of two contenders' seconds by each clock."""
    return {clock: summary(row[above][clock] / row[below][clock] for row in rounds) for clock in CLOCKS}


def show(row: dict[str, Any]) -> None:
    """Print the ratios."""
    kind = "full" if row["full"] else f"mean {row['mean_length']:.0f}"
    print(f"\nV = {row['vocabulary']:,}, {row['dtype']}, {row['batch']} sequences of up to {row['length']} ({kind})")
    for name in (OURS, ROWS, INVERSE, ALL):
        medians = {clock: 1e3 * statistics.median(r[name][clock] for r in row["rounds"]) for clock in CLOCKS}
        print(f"  {name:<38} {medians['cpu']:8.1f} ms CPU {medians['wall']:8.1f} ms wall")
    for what in ("ours_over_masked_rows", "ours_over_quick_draw", "all_logits_over_ours"):
        figures = (f"{x['median']:.2f} ({x['lowest']:.2f} to {x['highest']:.2f}) {c}" for c, x in row[what].items())
        print(f"  {what.replace('_', ' '):<38} {', '.join(figures)}", flush=True)


if __name__ == "__main__":
    main()
