"""The commands `tokenizer` and `corpus` of `fast-electra`. They import what they need when they run."""

import argparse
import os
import sys
import time
from typing import Any

_INPUT = """files (.txt with a blank line between documents; .jsonl, .ndjson or .json with one object a line; .parquet;
each also .gz, .xz, .zst, .bz2), folders, quoted globs, or `sample`, the corpus that ships"""


def _home(path: str) -> str:
    """Put the home folder where a path begins with `~`; no shell does so within `--output=~/x`."""
    return os.path.expanduser(path)  # noqa: PTH111 (an empty path stays empty)


def _add_text(parser: argparse.ArgumentParser) -> None:
    """Add what `tokenizer` and `corpus` share. The help names the functions' defaults, and a test compares them."""
    parser.argument_default = argparse.SUPPRESS  # a flag that is not given is not passed on
    add = parser.add_argument
    add("--input", dest="inputs", nargs="+", type=_home, required=True, metavar="FILE", help=_INPUT)
    add("--field", help="key or column that holds the text, such as data.text (default: text)")
    add("--document-per-line", action="store_true", help="each line of a .txt file is a document")
    add("--max-document-bytes", type=int, metavar="N", help="reject larger documents (default: 16 MiB)")
    add("--overwrite", action="store_true", help="replace the output if it exists")


def add_tokenizer(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tokenizer`."""
    _add_text(parser)
    add = parser.add_argument
    output = "folder to write (default: %(default)s)"
    add("--output", type=_home, default="data/tokenizer", metavar="FOLDER", help=output)
    add("--vocabulary", type=int, default=128_000, metavar="N", help="exact number of tokens (default: %(default)s)")
    sample = "learn from a random sample of the documents of at most N bytes (default: 256 MiB)"
    add("--max-train-bytes", type=int, metavar="N", help=sample)
    coverage = "share of the text whose characters get tokens; the rest is spelt in bytes (default: 0.99999)"
    add("--character-coverage", type=float, metavar="SHARE", help=coverage)


def tokenizer(output: str, **options: Any) -> None:
    """Train a tokenizer, and print what it was learnt from."""
    from fast_electra.text.train_tokenizer import train_tokenizer

    start = time.monotonic()
    card = train_tokenizer(output=output, **options)
    text = card["text"]
    read = f"{_megabytes(text['sampled_bytes'])} of {_megabytes(text['bytes'])}"
    print(f"tokenizer {output}: {card['vocabulary_size']:,} tokens, sha256 {card['sha256'][:16]}")
    print(f"learnt    {read}, {text['documents']:,} documents")
    if text["rejected"]:
        print(f"rejected  {text['rejected']:,} documents; `fast-electra corpus` lists each with its reason")
    print(f"took      {time.monotonic() - start:.1f} s")


def add_corpus(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `corpus`."""
    _add_text(parser)
    add = parser.add_argument
    tokenizer = "of `fast-electra tokenizer`, or a Hugging Face directory (default: %(default)s)"
    add("--tokenizer", type=_home, default="data/tokenizer", metavar="FOLDER", help=tokenizer)
    add("--output", type=_home, default="data/shards", metavar="FOLDER", help="folder to write (default: %(default)s)")
    add("--heldout", type=float, metavar="SHARE", help="share of the documents kept for evaluation (default: 0.005)")
    add("--workers", type=int, metavar="N", help="tokenising processes (default: 1)")
    add("--shard-bytes", type=int, metavar="N", help="start a new shard at this size (default: 1 GiB)")


def corpus(output: str, **options: Any) -> None:
    """Write shards, and print what they hold."""
    from fast_electra.corpus.shards import QUARANTINE, SPLITS
    from fast_electra.text.build import build_shards

    start = reported = time.monotonic()

    def progress(documents: int, size: int) -> None:
        nonlocal reported
        if (now := time.monotonic()) >= reported + 10:
            reported, rate = now, size / 1e6 / (now - start)
            print(f"{documents:,} documents, {_megabytes(size)}, {rate:.1f} MB/s", file=sys.stderr, flush=True)

    manifest = build_shards(output=output, progress=progress, **options)
    seconds = time.monotonic() - start
    for split in SPLITS:
        shards = manifest.splits[split]
        documents, tokens = (sum(getattr(shard, name) for shard in shards) for name in ("documents", "tokens"))
        print(f"{split:<8} {documents:>12,} documents {tokens:>15,} tokens {len(shards):>4} shards")
    print(f"text     {_megabytes(manifest.bytes)}, {manifest.bytes / manifest.tokens:.2f} bytes a token")
    if manifest.unknown:
        print(
            f"unknown  {manifest.unknown:>12,} tokens ({manifest.unknown / manifest.tokens:.2%}) stand for other text"
        )
    for reason, count in manifest.rejected.items():
        print(f"rejected {count:>12,} {reason}")
    if manifest.rejected:
        print(f"         each is listed in {output}/{QUARANTINE}")
    print(f"took     {seconds:.1f} s, {manifest.bytes / 1e6 / seconds:.1f} MB/s")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
