"""Fine-tune a model on a task: one of GLUE's, or one of your own. docs/finetuning.md has the files and the settings.

    deepspeed launch/finetune.py --deepspeed_config ds_configs/finetune.json --task rte --data glue/RTE --checkpoint RUN

RUN is a run folder, an exported directory, or any encoder of Hugging Face. A run that was interrupted is continued.
"""

import json

from fast_electra.jobs import launcher
from fast_electra.settings import UserError


def main() -> None:
    """Read the arguments and train."""
    parser = launcher.parser(__doc__)
    add = parser.add_argument
    add("--task", metavar="NAME|FILE", help="a task of GLUE, such as rte, or a JSON file that describes your own")
    add("--data", metavar="FOLDER", help="the task's files")
    add("--checkpoint", metavar="FOLDER", help="what is fine-tuned")
    grid = "search over Table 4, or over NAME=VALUE,... of learning_rate, epochs, batch_size, weight_decay, warmup"
    add("--grid", nargs="*", metavar="NAME=VALUES", help=grid)
    add("--seeds", type=int, default=1, metavar="N", help="train each setting N times (default: %(default)s)")
    arguments = parser.parse_args()

    from fast_electra.finetuning import sweep  # here: --help answers at once
    from fast_electra.jobs import finetune

    keys = {"task": arguments.task, "data": arguments.data, "pretrained": arguments.checkpoint}
    overrides = [f"fast_electra.{key}={json.dumps(value)}" for key, value in keys.items() if value is not None]
    if arguments.seeds < 1:
        raise UserError(f"--seeds {arguments.seeds}: must be a whole number >= 1")
    searched = None if arguments.grid is None else sweep.parse_grid(arguments.grid)
    finetune.main(arguments.deepspeed_config, [*arguments.set, *overrides], searched, arguments.seeds)


if __name__ == "__main__":
    launcher.run("finetune", main)
