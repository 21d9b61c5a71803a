"""Pre-train by any objective: the auxiliary model (mlm), the main model (rtd) or both (joint), as the config says.

    deepspeed launch/pretrain.py --deepspeed_config ds_configs/large.json [--set KEY=VALUE ...]

A run folder that holds checkpoints is continued from the newest one.
"""

from fast_electra.jobs import launcher


def main() -> None:
    """Read the arguments and train."""
    arguments = launcher.parser(__doc__).parse_args()

    from fast_electra import config  # here: --help answers at once
    from fast_electra.jobs import pretrain
    from fast_electra.training.machine import this_machine

    pretrain.main(config.load(arguments.deepspeed_config, arguments.set, this_machine()))


if __name__ == "__main__":
    launcher.run("pretrain", main)
