"""What all launch scripts share: their arguments, and how a user's mistake is reported. Imports nothing heavy."""

import argparse
import importlib
import importlib.util
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from fast_electra.locks import only_writer
from fast_electra.settings import UserError, path_argument
from fast_electra.training import signals

if TYPE_CHECKING:
    from fast_electra.run_settings import ResolvedConfig
    from fast_electra.training.engines import Ranks


LOCK = ".lock"  # in the folder that a job writes
MONITORS = {"tensorboard": "tensorboard", "wandb": "wandb", "comet": "comet_ml"}  # DeepSpeed's: section and package


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Let one rank say what is wrong."""
        raise UserError(f"{message}; see --help")


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the arguments of every script that the `deepspeed` launcher starts."""
    parser = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--deepspeed_config",
        type=path_argument,
        required=True,
        metavar="FILE",
        help="a DeepSpeed config with a section fast_electra",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override any key; repeatable")
    parser.add_argument("--local_rank", type=int, default=0, help="given by the launcher")
    parser.add_argument("--deepspeed", action="store_true", help="accepted for the launcher's sake; always on")
    return parser


def begin(config: "ResolvedConfig", trains: bool = True) -> "Ranks":
    """Build what DeepSpeed compiles, and join the launcher's process group.

    If the job trains, the ranks also agree on an Adam that all of them have: `torch_adam` of the config may change.
    """
    from fast_electra.hosts import operators
    from fast_electra.training import nvidia_apex
    from fast_electra.training.engines import start_ranks

    for section, package in MONITORS.items():
        if config.deepspeed.get(section, {}).get("enabled") and not importlib.util.find_spec(package):
            remedy = f"pip install {package}, or --set {section}.enabled=false"
            raise UserError(f"{section}.enabled needs the package {package}, which is not installed: {remedy}")
    if trains and config.apex:
        nvidia_apex.load()
    operators.ensure(fused_adam=trains and config.fused_adam)
    ranks = start_ranks()
    if trains and config.fused_adam:
        operators.choose_adam(config.deepspeed["optimizer"]["params"], ranks)
    return ranks


@contextmanager
def only_job(folder: Path, remedy: str) -> Iterator[None]:
    """Make the folder that a job writes, and keep other jobs away from it. Rank 0 does this, before any work.

    Raises:
        UserError: the folder cannot be made or written, or another job writes it. The message ends with `remedy`.
    """
    from fast_electra.training.engines import check_launcher

    check_launcher()
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    with ExitStack() as stack:
        try:
            made = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(only_writer(folder / LOCK, folder, remedy))
        except OSError as error:
            raise UserError(f"{folder} cannot be made or written ({error.strerror}): {remedy}") from None
        try:
            yield
        finally:
            stack.close()
            if made:
                with suppress(OSError):  # it holds something
                    folder.rmdir()


def run(name: str, main: Callable[[], None]) -> None:
    """Run a job. However it ends early, the last thing on the screen is one line on stderr that begins with `name`.

    The exit code is 2 for a user's mistake, signals.EXIT_CODE after a signal, and 1 for all else.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # when rank 0 is killed, its store's clients log C++ stacks
    signals.watch.start()
    try:
        main()
    except (Exception, KeyboardInterrupt) as error:
        _fail(name, error)


def _fail(name: str, error: BaseException) -> NoReturn:
    """Say why this rank ends, unless another has already said so, and end at once: threads of gloo could abort."""
    signals.watch.stop()
    failure = importlib.import_module("fast_electra.training.failure") if "torch" in sys.modules else None
    rank, leads = os.environ.get("RANK", "0"), os.environ.get("LOCAL_RANK", "0") == "0"
    agreed = isinstance(error, signals.Interrupted) and error.agreed
    speaks = rank == "0" if getattr(error, "agreed", False) else failure.first_to_fail() if failure else leads
    where = "" if rank == "0" else f" on rank {rank} ({socket.gethostname()})"
    line, code, unexpected = f"error{where}: {error}", 2, False
    if isinstance(error, KeyboardInterrupt):
        line, code = f"interrupted{where}: {error}; the same command resumes", signals.EXIT_CODE
    elif failure and (lost := failure.lost_rank(error)):
        line, code = f"error{where}: {lost}; the same command resumes", 1
    elif not isinstance(error, UserError | OSError):  # OSError: a full disk, a folder that may not be written
        line, code, unexpected = f"error{where}: {type(error).__name__}: {error}", 1, True
    sys.stdout.flush()
    if speaks:
        if unexpected:
            traceback.print_exception(error)
        sys.stderr.write(f"{name}: {line}\n")  # in one write, because ranks share the pipe
        sys.stderr.flush()
    if failure and not agreed:
        failure.abandon_ranks()
        if not speaks:
            time.sleep(2.5)  # the launcher passes on the exit code of the rank that ends first
    os._exit(code)
