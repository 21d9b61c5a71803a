"""Pre-trains by any objective: the auxiliary model (mlm) or the main model (rtd), as the config says.

    deepspeed launch/pretrain.py --deepspeed_config ds_configs/large.json [--set KEY=VALUE ...]

A run folder that holds checkpoints is continued from the newest one.
"""

import argparse
import os
import socket
import sys

from fast_electra.settings import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--deepspeed_config", required=True, metavar="FILE", help="a DeepSpeed config with a section fast_electra"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override any key; repeatable")
    parser.add_argument("--local_rank", type=int, default=0, help="given by the launcher")
    parser.add_argument("--deepspeed", action="store_true", help="accepted for the launcher's sake; always on")
    arguments = parser.parse_args()

    from fast_electra import config, pretraining  # here: --help answers at once

    pretraining.pretrain(config.load(arguments.deepspeed_config, arguments.set))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # one voice a machine
            where = "" if os.environ.get("RANK", "0") == "0" else f" on {socket.gethostname()}"
            sys.stderr.write(f"pretrain: error{where}: {error}\n")  # in one piece: ranks share the pipe
        sys.exit(2)
