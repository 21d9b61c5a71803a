"""Writes the corrupted data of a run before it trains: the offline preprocessing of the paper's section 4.

    deepspeed launch/preprocess.py --deepspeed_config ds_configs/large.json --output DIR [--set KEY=VALUE ...]
    deepspeed launch/pretrain.py --deepspeed_config ds_configs/large.json --set fast_electra.replacement.store=DIR

The run then needs no auxiliary model, and sees the same tokens as without the store. Starting the same command again,
with any number of processes, goes on where a killed one stood.
"""

from pathlib import Path

from fast_electra.jobs import launcher


def main() -> None:
    parser = launcher.parser(__doc__)
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="the store; fast_electra.replacement.store if left out"
    )
    parser.add_argument("--part", type=int, metavar="N", help="sequences of a file (default: 4,096 to 65,536)")
    arguments = parser.parse_args()

    from fast_electra import config
    from fast_electra.jobs import preprocess  # here: --help answers at once

    # As for one process: how the batch of training is divided says nothing about who may write.
    run = config.load(arguments.deepspeed_config, arguments.set, world=1)
    preprocess.preprocess(run, arguments.output, arguments.part)


if __name__ == "__main__":
    launcher.run("preprocess", main)
