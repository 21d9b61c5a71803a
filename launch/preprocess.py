"""Write the corrupted data of a run before it trains: the offline preprocessing of the paper's section 4.

    deepspeed launch/preprocess.py --deepspeed_config ds_configs/large.json --output DIR [--set KEY=VALUE ...]
    deepspeed launch/pretrain.py --deepspeed_config ds_configs/large.json --set fast_electra.replacement.store=DIR

The run then needs no auxiliary model, and sees the same tokens as without the store. To resume a killed preprocessing,
start the same command again, with any number of processes.
"""

from fast_electra.jobs import launcher
from fast_electra.settings import path_argument


def main() -> None:
    """Read the arguments and write the store."""
    parser = launcher.parser(__doc__)
    parser.add_argument(
        "--output", type=path_argument, metavar="DIR", help="the store (default: fast_electra.replacement.store)"
    )
    parser.add_argument("--part", type=int, metavar="N", help="sequences of a file (default: 4,096 to 65,536)")
    arguments = parser.parse_args()

    from fast_electra import config  # here: --help answers at once
    from fast_electra.jobs import preprocess
    from fast_electra.training.machine import this_machine

    # The config is resolved for one process: how training divides its batch says nothing about who may write.
    machine = this_machine()._replace(processes=1)
    preprocess.main(config.load(arguments.deepspeed_config, arguments.set, machine), arguments.output, arguments.part)


if __name__ == "__main__":
    launcher.run("preprocess", main)
