"""Pre-trains by any objective: the auxiliary model (mlm), the main model (rtd) or both (joint), as the config says.

    deepspeed launch/pretrain.py --deepspeed_config ds_configs/large.json [--set KEY=VALUE ...]

A run folder that holds checkpoints is continued from the newest one.
"""

from fast_electra.jobs import launcher


def main() -> None:
    arguments = launcher.parser(__doc__).parse_args()

    from fast_electra import config
    from fast_electra.jobs import pretrain  # here: --help answers at once

    pretrain.pretrain(config.load(arguments.deepspeed_config, arguments.set))


if __name__ == "__main__":
    launcher.run("pretrain", main)
