"""The command `fast-electra`: everything that needs no distributed launch.

Each command imports what it needs when it runs, so that `--help` answers at once.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fast_electra.settings import UserError, file_argument, path_argument
from fast_electra.text import commands

_SET = "override a key of the config; repeatable"


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", type=path_argument, metavar="RUN", help="run folders, in the order of the page"
    )
    parser.add_argument(
        "--output", type=file_argument, metavar="FILE", help="default: report.html in the last run's folder"
    )


def _report(runs: list[Path], output: Path | None) -> None:
    from fast_electra.report.page import write_report

    print(f"report   {write_report(runs, output or runs[-1] / 'report.html')}")


def _add_estimate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", type=path_argument, metavar="FILE", help="a run's config (default: Table 1 of the paper alone)")
    add("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help=_SET)
    add("--gpus", type=int, default=1, metavar="N", help="devices of the run (default: %(default)s)")
    add("--gpu", default="h100", metavar="NAME", help="model of the devices (default: %(default)s)")
    share = "share of a device's peak that the run reaches (default: %(default)s)"
    add("--mfu", type=float, default=0.4, metavar="SHARE", help=share)
    add("--dollars-per-hour", type=float, metavar="X", help="price of one GPU (default: no dollars)")
    add("--json", dest="as_json", action="store_true", help="print every figure, unrounded")


def _estimate(config: Path | None, overrides: list[str], as_json: bool, **devices: Any) -> None:
    with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed logs while it is imported, and --json must stay JSON
        from fast_electra.cost import estimate, table_1, tables

    cluster = estimate.Cluster(**devices)
    if config is None and (overrides or cluster.gpus > 1):
        raise UserError("--gpus and --set are about a run: name its config with --config")
    run = estimate.estimate_config(config, overrides, cluster) if config else None
    rows = table_1.table_1(estimate.paper_models())
    if as_json:
        print(json.dumps({"table_1": rows, "table_1_ratios": table_1.ratios(rows), "run": run}, indent=2))
        return
    print(table_1.table_1_text(rows))
    if run is not None:
        print("\n" + tables.run_text(run))


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", dest="path", type=path_argument, required=True, metavar="FILE", help="a config of objective rtd")
    add("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help=_SET)
    add("--auxiliary", type=path_argument, metavar="RUN", help="run folder of the auxiliary (default: the config's)")
    add(
        "--reference",
        type=path_argument,
        metavar="RUN|FILE",
        help="a joint or rtd run, or a saved curve (default: the one that ships)",
    )
    match = """follow the reference itself, or only its way to wherever the auxiliary ends
        (default: level with --reference, shape without)"""
    add("--match", choices=("level", "shape"), help=match)
    add("--sequences", type=int, default=512, metavar="N", help="held-out ones to measure on (default: %(default)s)")
    add("--json", dest="figures", type=file_argument, metavar="FILE", help="write every figure")
    add("--plot", type=file_argument, metavar="FILE", help="draw the curves: .svg, .png or .pdf")
    add(
        "--save-reference",
        dest="curve",
        type=file_argument,
        metavar="FILE",
        help="keep the reference's curve as a small file",
    )


def _calibrate(
    reference: Path | None, match: str | None, figures: Path | None, plot: Path | None, curve: Path | None, **run: Any
) -> None:
    with contextlib.redirect_stdout(sys.stderr):  # as in `_estimate`
        from fast_electra.calibration import calibrate, fit
    from fast_electra.files import write_json

    if plot and plot.suffix not in (".svg", ".png", ".pdf"):
        raise UserError(f"--plot {plot}: end the name in .svg, .png or .pdf")
    for file in (figures, plot, curve):
        if file and not file.parent.is_dir():  # found before the work, not after it
            raise UserError(f"{file}: there is no folder {file.parent}")
    wanted = fit.open_reference(reference)
    match = match or ("shape" if reference is None else "level")
    found = calibrate.calibrate(reference=wanted, match=match, **run)
    print(calibrate.to_text(found))
    if figures:
        write_json(figures, calibrate.to_json(found))
    if plot:
        calibrate.write_plot(found, plot)
    if curve:
        fit.save_reference(wanted, curve)


def _add_detect(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", type=path_argument, metavar="RUN", help="completed run of objective rtd or joint, or a model folder")
    add("texts", nargs="*", metavar="TEXT", help="text to judge (default: standard input)")
    add("--threshold", type=float, default=0.5, metavar="P", help="mark tokens from here on (default: %(default)s)")
    add("--json", dest="as_json", action="store_true", help="print one JSON object a line for each text")
    add("--tokenizer", type=path_argument, metavar="FOLDER", help="default: the one that the run's config.json names")
    add("--sequence-length", type=int, metavar="N", help="cut longer texts to it (default: the run's)")
    corrupt = "corrupt the text first with this run's masked language model, and show both"
    add("--auxiliary", type=path_argument, metavar="RUN", help=corrupt)
    add("--temperature", type=float, metavar="T", help="of the auxiliary's draws (default: 1)")
    add("--seed", type=int, default=0, metavar="N", help="of masks and draws (default: %(default)s)")


def _detect(**options: Any) -> None:
    from fast_electra.detect import terminal

    terminal.main(**options)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    kinds = "run, checkpoint, model, auxiliary, store, shards, tokenizer, config or metrics: a folder or a file in it"
    add("path", type=path_argument, metavar="PATH", help=kinds)
    add("--verify", action="store_true", help="hash all contents (default: sizes, headers and seals)")
    add("--json", dest="as_json", action="store_true", help="print every fact in full")


def _inspect(path: Path, verify: bool, as_json: bool) -> int:
    from fast_electra.inspection.lines import to_text
    from fast_electra.inspection.look import inspect

    found = inspect(path, verify)
    as_dict = {"path": str(path), "kind": found.kind, **found.facts, "problems": found.problems}
    print(json.dumps(as_dict, indent=2) if as_json else to_text(path, found, verify))
    return 1 if found.problems else 0


def _add_export(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", type=path_argument, metavar="RUN", help="run folder, or model folder")
    add("output", type=path_argument, metavar="DIR", help="folder to write")
    tokenizer = "the model's tokenizer (default: the one that the run's config names)"
    add("--tokenizer", type=path_argument, metavar="FOLDER", help=tokenizer)
    add("--part", choices=("auxiliary",), help="export the auxiliary model of a joint run (default: its main model)")
    add("--licence", default="unknown", metavar="TEXT", help="of the corpus, for the model card (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace an older export")


def _export(output: Path, **options: Any) -> None:
    from fast_electra.export.export import export

    config = export(output=output, **options)
    layers = config["num_hidden_layers"]
    print(f"export   {output}: {config['architectures'][0]}, {layers} layer{'s' if layers > 1 else ''}")


def _add_scores(parser: argparse.ArgumentParser) -> None:
    runs = "runs or searches of launch/finetune.py, or folders of them"
    parser.add_argument("runs", nargs="+", type=path_argument, metavar="RUN", help=runs)
    parser.add_argument("--json", dest="as_json", action="store_true", help="print every score")


def _scores(runs: list[Path], as_json: bool) -> None:
    from fast_electra.finetuning import scoreboard

    found = scoreboard.entries(runs)
    print(scoreboard.to_json(found) if as_json else scoreboard.to_text(found))


def _add_pair(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("main", type=path_argument, metavar="MAIN", help="directory of the encoder to train")
    add("auxiliary", type=path_argument, metavar="AUXILIARY", help="directory of the masked language model that draws")
    add("--sequence-length", type=int, default=512, metavar="N", help="of the run (default: %(default)s)")


def _pair(main: Path, auxiliary: Path, sequence_length: int) -> int:
    from fast_electra.pair import pair

    if sequence_length < 8:
        raise UserError(f"--sequence-length must be at least 8, not {sequence_length}")
    lines, fit = pair(main, auxiliary, sequence_length)
    print("\n".join(lines))
    return 0 if fit else 1


def _doctor() -> int:
    from fast_electra.hosts import doctor

    return doctor.main()


# One line of help, a function that adds the arguments, and one that takes them and runs the command.
COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[..., int | None]]] = {
    "tokenizer": ("train a SentencePiece tokenizer on text", commands.add_tokenizer, commands.tokenizer),
    "corpus": ("tokenise text into shards", commands.add_corpus, commands.corpus),
    "report": ("write one HTML page on one or more runs", _add_report, _report),
    "estimate": ("what a run costs: FLOPs, memory, hours, dollars", _add_estimate, _estimate),
    "scores": ("compare fine-tuned runs, and take the GLUE average", _add_scores, _scores),
    "calibrate": ("propose the curriculum of an auxiliary model", _add_calibrate, _calibrate),
    "detect": ("mark the tokens of a text that look replaced", _add_detect, _detect),
    "inspect": ("say what a file or folder is, what it was made from, and whether it is whole", _add_inspect, _inspect),
    "pair": ("whether two models of Hugging Face fit as main and auxiliary model", _add_pair, _pair),
    "export": ("write a trained model for Hugging Face's transformers", _add_export, _export),
    "doctor": ("see whether this machine is ready, and what it lacks", lambda parser: None, _doctor),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a user's mistake is one line on stderr and exit code 2."""
    description = "Pre-train discriminators by replaced-token detection."
    parser = argparse.ArgumentParser(prog="fast-electra", description=description)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (line, add_arguments, _) in COMMANDS.items():
        add_arguments(subparsers.add_parser(name, help=line, description=line))
    parsed, rest = parser.parse_known_args(arguments)
    options = vars(parsed)
    if rest and ("texts" not in options or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.get("texts", []).extend(rest)  # those after a flag; argparse itself takes them only right after RUN
    # What a command cleans up on Ctrl-C it also cleans up when it is terminated.
    previous = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        code = COMMANDS[options.pop("command")][2](**options) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # who reads the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush when Python ends
        return 128 + signal.SIGPIPE
    except (UserError, OSError) as error:  # OSError: a full disk, a folder that may not be written
        print(f"fast-electra: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fast-electra: interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    sys.exit(main())
