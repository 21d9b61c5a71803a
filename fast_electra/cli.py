"""`fast-electra ...`: everything that needs no distributed launch. Each command imports what it needs when it runs."""

import argparse
import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from fast_electra.settings import UserError

_INPUT = """files (.txt with a blank line between documents, .jsonl, .parquet; each also .gz, .xz, .zst), folders,
quoted globs, or `sample`, the corpus that ships"""


class Command(NamedTuple):
    """A subcommand: one line of help, a function that adds its arguments, and one that runs it."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def _add_input(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", nargs="+", required=True, metavar="FILE", help=_INPUT)
    parser.add_argument("--field", default="text", help="key or column that holds the text (default: %(default)s)")
    parser.add_argument(
        "--max-document-bytes", type=int, default=2**24, metavar="N", help="reject larger documents (default: 16 MiB)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")


def _add_tokenizer(parser: argparse.ArgumentParser) -> None:
    _add_input(parser)
    parser.add_argument("--output", default="data/tokenizer", metavar="FOLDER", help="where to (default: %(default)s)")
    parser.add_argument(
        "--vocabulary", type=int, default=128_000, metavar="N", help="exact number of tokens (default: %(default)s)"
    )
    parser.add_argument(
        "--max-train-bytes",
        type=int,
        default=2**28,
        metavar="N",
        help="learn from a random sample of the documents of at most N bytes (default: 256 MiB)",
    )
    parser.add_argument(
        "--character-coverage",
        type=float,
        default=0.99999,
        metavar="SHARE",
        help="share of the text whose characters get tokens; the rest is spelt in bytes (default: %(default)s)",
    )


def _run_tokenizer(arguments: argparse.Namespace) -> None:
    from fast_electra.corpus.tokenizer import train_tokenizer

    start = time.monotonic()
    card = train_tokenizer(
        inputs=arguments.input,
        output=arguments.output,
        vocabulary=arguments.vocabulary,
        field=arguments.field,
        max_document_bytes=arguments.max_document_bytes,
        max_train_bytes=arguments.max_train_bytes,
        character_coverage=arguments.character_coverage,
        overwrite=arguments.overwrite,
    )
    text = card["text"]
    print(f"tokenizer {arguments.output}: {card['vocabulary_size']:,} tokens, sha256 {card['sha256'][:16]}")
    print(
        f"learnt    {_megabytes(text['sampled_bytes'])} of {_megabytes(text['bytes'])}, {text['documents']:,} documents"
    )
    if text["rejected"]:
        print(f"rejected  {text['rejected']:,} documents; `fast-electra corpus` lists each with its reason")
    print(f"took      {time.monotonic() - start:.1f} s")


def _add_corpus(parser: argparse.ArgumentParser) -> None:
    _add_input(parser)
    parser.add_argument("--tokenizer", default="data/tokenizer", metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--output", default="data/shards", metavar="FOLDER", help="where to (default: %(default)s)")
    parser.add_argument(
        "--heldout",
        type=float,
        default=0.005,
        metavar="SHARE",
        help="share of the documents kept for evaluation (default: %(default)s)",
    )
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="tokenising processes (default: %(default)s)"
    )
    parser.add_argument(
        "--shard-bytes", type=int, default=2**30, metavar="N", help="start a new shard at this size (default: 1 GiB)"
    )


def _run_corpus(arguments: argparse.Namespace) -> None:
    from fast_electra.corpus.build import build_shards
    from fast_electra.corpus.shards import QUARANTINE, SPLITS

    start = reported = time.monotonic()

    def progress(documents: int, size: int) -> None:
        nonlocal reported
        if (now := time.monotonic()) >= reported + 10:
            reported = now
            print(
                f"{documents:,} documents, {_megabytes(size)}, {size / 1e6 / (now - start):.1f} MB/s",
                file=sys.stderr,
                flush=True,
            )

    manifest = build_shards(
        inputs=arguments.input,
        tokenizer=arguments.tokenizer,
        output=arguments.output,
        heldout=arguments.heldout,
        workers=arguments.workers,
        field=arguments.field,
        max_document_bytes=arguments.max_document_bytes,
        shard_bytes=arguments.shard_bytes,
        overwrite=arguments.overwrite,
        progress=progress,
    )
    seconds = time.monotonic() - start
    for split in SPLITS:
        shards = manifest.splits[split]
        documents, tokens = (sum(getattr(shard, name) for shard in shards) for name in ("documents", "tokens"))
        print(f"{split:<8} {documents:>12,} documents {tokens:>15,} tokens {len(shards):>4} shards")
    print(f"text     {_megabytes(manifest.bytes)}, {manifest.bytes / manifest.tokens:.2f} bytes a token")
    for reason, count in manifest.rejected.items():
        print(f"rejected {count:>12,} {reason}")
    if manifest.rejected:
        print(f"         each is listed in {arguments.output}/{QUARANTINE}")
    print(f"took     {seconds:.1f} s, {manifest.bytes / 1e6 / seconds:.1f} MB/s")


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, in the order of the page")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: report.html in the last run's folder")


def _run_report(arguments: argparse.Namespace) -> None:
    from fast_electra.report.page import write_report

    output = arguments.output or arguments.runs[-1] / "report.html"
    print(f"report   {write_report(arguments.runs, output)}")


def _run_doctor(arguments: argparse.Namespace) -> None:
    from fast_electra.hosts import doctor

    if code := doctor.main():
        sys.exit(code)


def _add_estimate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="a run's config (default: Table 1 of the paper alone)")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="override a key of the config; repeatable")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="devices of the run (default: %(default)s)")
    parser.add_argument("--gpu", default="h100", metavar="NAME", help="which one (default: %(default)s)")
    parser.add_argument(
        "--mfu",
        type=float,
        default=0.4,
        metavar="SHARE",
        help="share of its peak that it reaches (default: %(default)s)",
    )
    parser.add_argument(
        "--dollars-per-hour", type=float, metavar="X", help="of one GPU (default: an assumption, which is printed)"
    )
    parser.add_argument("--json", action="store_true", help="every figure, unrounded")


def _run_estimate(arguments: argparse.Namespace) -> None:
    with contextlib.redirect_stdout(sys.stderr):  # where DeepSpeed, once imported, then logs: --json must stay JSON
        from fast_electra.cost import estimate
    from fast_electra.cost.estimate import Cluster
    from fast_electra.cost.table_1 import ratios, table_1, table_1_text
    from fast_electra.cost.tables import run_text

    machine = Cluster(arguments.gpu, arguments.gpus, arguments.mfu, arguments.dollars_per_hour)
    machine.check()
    if arguments.config is None and (arguments.set or arguments.gpus > 1):
        raise UserError("--gpus and --set are about a run: name its config with --config")
    run = estimate.estimate_config(arguments.config, arguments.set or [], machine) if arguments.config else None
    rows = table_1(estimate.paper_models())
    if arguments.json:
        print(json.dumps({"table_1": rows, "table_1_ratios": ratios(rows), "run": run}, indent=2))
        return
    print(table_1_text(rows))
    if run is not None:
        print("\n" + run_text(run))


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="FILE", help="a config of objective rtd")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="override a key of the config; repeatable")
    parser.add_argument("--auxiliary", metavar="RUN", help="run folder of the auxiliary (default: the config's)")
    parser.add_argument(
        "--reference", metavar="RUN|FILE", help="a joint or rtd run, or a saved curve (default: the one that ships)"
    )
    parser.add_argument(
        "--match",
        choices=("level", "shape"),
        help="follow the reference itself, or only its way to wherever the auxiliary ends "
        "(default: level with --reference, shape without)",
    )
    parser.add_argument(
        "--sequences", type=int, default=512, metavar="N", help="held-out ones to measure on (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves: .svg, .png or .pdf")
    parser.add_argument(
        "--save-reference", type=Path, metavar="FILE", help="keep the reference's curve as a small file"
    )


def _run_calibrate(arguments: argparse.Namespace) -> None:
    with contextlib.redirect_stdout(sys.stderr):  # as for `estimate`
        from fast_electra.calibration import calibrate as calibration
    from fast_electra.calibration.fit import open_reference, save_reference
    from fast_electra.files import write_json

    if arguments.plot and arguments.plot.suffix not in (".svg", ".png", ".pdf"):
        raise UserError(f"--plot {arguments.plot}: end the name in .svg, .png or .pdf")
    for file in (arguments.json, arguments.plot, arguments.save_reference):
        if file and not file.parent.is_dir():  # said before the work, not after it
            raise UserError(f"{file}: there is no folder {file.parent}")
    reference = open_reference(arguments.reference)
    match = arguments.match or ("shape" if arguments.reference is None else "level")
    found = calibration.calibrate(
        arguments.config, arguments.set or [], arguments.auxiliary, reference, match, arguments.sequences
    )
    print(calibration.to_text(found))
    if arguments.json:
        write_json(arguments.json, calibration.to_json(found))
    if arguments.plot:
        calibration.write_plot(found, arguments.plot)
    if arguments.save_reference:
        save_reference(reference, arguments.save_reference)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


COMMANDS = {
    "tokenizer": Command("train a SentencePiece tokenizer on text", _add_tokenizer, _run_tokenizer),
    "corpus": Command("tokenise text into shards", _add_corpus, _run_corpus),
    "report": Command("write one HTML page on one or more runs", _add_report, _run_report),
    "estimate": Command("what a run costs: FLOPs, memory, hours, dollars", _add_estimate, _run_estimate),
    "calibrate": Command("propose the curriculum of an auxiliary model", _add_calibrate, _run_calibrate),
    "doctor": Command("see whether this machine is ready, and what it lacks", lambda parser: None, _run_doctor),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; a user's mistake is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="fast-electra", description="Pre-train discriminators by replaced-token detection."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add_arguments(subparsers.add_parser(name, help=command.help, description=command.help))
    parsed = parser.parse_args(arguments)
    # What a command cleans up on Ctrl-C it also cleans up when it is terminated.
    previous = signal.signal(signal.SIGTERM, _terminated)
    try:
        COMMANDS[parsed.command].run(parsed)
    except (UserError, OSError) as error:  # OSError: a full disk, a folder that may not be written
        print(f"fast-electra: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fast-electra: interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def _terminated(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
