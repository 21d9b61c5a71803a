"""What all launch scripts share: their arguments, and how a user's mistake is reported. Imports nothing heavy."""

import argparse
import os
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from fast_electra.settings import UserError, path_argument

if TYPE_CHECKING:
    from fast_electra.config import Config
    from fast_electra.training.engines import Ranks


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the arguments of every script that the `deepspeed` launcher starts."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
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


def begin(config: "Config", trains: bool = True) -> "Ranks":
    """Build what DeepSpeed compiles, and join the launcher's process group.

    If the job trains, the ranks also agree on an Adam that all of them have: `torch_adam` of the config may change.
    """
    from fast_electra.hosts import operators
    from fast_electra.training.engines import start_ranks

    operators.ensure(fused_adam=trains and not config.torch_adam)
    ranks = start_ranks()
    if trains:
        operators.choose_adam(config.deepspeed["optimizer"]["params"], ranks)
    return ranks


def run(name: str, main: Callable[[], None]) -> None:
    """Run a job. A user's mistake becomes exit code 2 and one line on stderr, from one rank of each machine.

    The line begins with `name`, that of the script.
    """
    try:
        main()
    except (UserError, OSError) as error:  # OSError: a full disk, a folder that may not be written
        if os.environ.get("LOCAL_RANK", "0") == "0":  # one rank of this machine
            where = "" if os.environ.get("RANK", "0") == "0" else f" on {socket.gethostname()}"
            sys.stderr.write(f"{name}: error{where}: {error}\n")  # in one write, because ranks share the pipe
        sys.exit(2)
