"""Measure Table 7 of the paper on this machine: seconds per update and peak memory of tensors, beside predictions.

    deepspeed launch/measure.py --deepspeed_config ds_configs/large.json [--set KEY=VALUE ...]

The config is one of objective rtd. One run trains its main model on the same batches in three ways: beside a joint
auxiliary, as Fast-ELECTRA with its frozen auxiliary (online), and as Fast-ELECTRA from a store (offline). If
`auxiliary.run` holds no model yet, an untrained one takes its place. It costs the same.
"""

import os

from fast_electra.jobs import launcher
from fast_electra.settings import file_argument, path_argument


def main() -> None:
    """Read the arguments and measure."""
    parser = launcher.parser(__doc__)
    parser.add_argument("--updates", type=int, default=10, metavar="N", help="measured in each turn; default: 10")
    parser.add_argument("--warmup", type=int, default=3, metavar="N", help="before them; default: 3")
    parser.add_argument("--rounds", type=int, default=6, metavar="N", help="turns of each method; default: 6")
    parser.add_argument("--json", type=file_argument, metavar="FILE", help="keep every figure here")
    parser.add_argument(
        "--trace", type=path_argument, metavar="FOLDER", help="torch.profiler's traces of two updates, here"
    )
    parser.add_argument("--flops", action="store_true", help="let DeepSpeed's flops profiler count, too")
    arguments = parser.parse_args()

    for name, level in (("KINETO_LOG_LEVEL", "6"), ("TORCH_CPP_LOG_LEVEL", "ERROR")):
        os.environ.setdefault(name, level)  # before torch is imported, because its profiler logs to stderr
    from fast_electra import config  # here, so that --help answers at once
    from fast_electra.jobs import measure
    from fast_electra.training.machine import this_machine

    path, overrides = str(arguments.deepspeed_config), arguments.set
    options = measure.Options(
        arguments.updates, arguments.warmup, arguments.rounds, arguments.json, arguments.trace, arguments.flops
    )
    measure.main(config.load(path, overrides, this_machine()), path, overrides, options)


if __name__ == "__main__":
    launcher.run("measure", main)
