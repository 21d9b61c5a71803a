"""One pre-training run: what `launch/pretrain.py` starts on every rank."""

from pathlib import Path

from fast_electra import parts
from fast_electra.config import SECTION, Config
from fast_electra.cost.estimate import check_machine, checkpointing_advice
from fast_electra.jobs import launcher, session
from fast_electra.model.heads import count_parameters
from fast_electra.parts import PretrainingRun
from fast_electra.report.examples import write_examples
from fast_electra.training.engines import Ranks, from_rank_0, stop_ranks
from fast_electra.training.machine import device_memory


def main(config: Config) -> None:
    """Join the launcher's process group, train, and leave it."""
    check_machine(config, device_memory())
    with launcher.only_job(Path(config.run.run), f"name another run folder with --set {SECTION}.run=FOLDER"):
        session.check_kinds(Path(config.run.run))
        ranks = launcher.begin(config)
        train(config, ranks)
        stop_ranks()


def train(config: Config, ranks: Ranks) -> None:
    """Train to the end of the run, from wherever its folder is; export the models and write the report."""
    finish(parts.build(config, ranks))


def finish(run: PretrainingRun) -> None:
    """Train a run that was built; see `train`."""
    config, folder = run.config, Path(run.config.run.run)
    opening = [_headline(run)]
    if advice := checkpointing_advice(config, device_memory()):
        opening.append(f"note: {advice}")
    opening += [f"note: {SECTION}.{key} is ignored ({reason})" for key, reason in config.unread.items()]
    session.finish(run, opening, lambda evaluation: from_rank_0(run.ranks, lambda: write_examples(run, folder)))


def _headline(run: PretrainingRun) -> str:
    config, train, world = run.config, run.corpus.train, run.ranks.world
    millions = count_parameters(run.objective.model) / 1e6
    kernels = "NVIDIA's apex, " if config.apex else ""
    return (
        f"{config.run.objective} {config.run.recipe}: {millions:.{0 if millions >= 20 else 2}f} M parameters, "
        f"{config.dtype}, {kernels}{world} process{'es' if world > 1 else ''} on {run.ranks.device.type}; "
        f"{len(train):,} sequences of {config.run.corpus.sequence_length}, {config.sequences} an update, "
        f"{config.run.updates:,} updates = {config.run.updates * config.sequences / len(train):.2f} epochs; "
        f"left out: {train.dropped.documents} documents too short ({train.dropped.tokens} tokens)"
    )
