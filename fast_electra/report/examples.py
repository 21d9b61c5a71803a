"""Ten held-out sequences as the discriminator sees them, for the report."""

from pathlib import Path

import torch

from fast_electra.files import write_json
from fast_electra.objectives.joint import Joint
from fast_electra.objectives.rtd import RTD
from fast_electra.parts import PretrainingRun
from fast_electra.training.loop import EXAMPLES, evaluation_batch, evaluation_size


@torch.no_grad()
def write_examples(run: PretrainingRun, folder: Path) -> None:
    """Write examples.json after a run: held-out sequences as the main model sees them.

    Each token of the corrupted sequence has what it was and the predicted probability. Only detection has such
    examples: for other objectives, and without held-out sequences, nothing is written. One rank may call this alone.
    """
    objective, heldout, update = run.objective, run.corpus.heldout, run.config.run.updates
    if not isinstance(objective, RTD | Joint) or heldout is None:
        return
    samples = torch.arange(evaluation_size(heldout, "heldout", EXAMPLES))
    batch = evaluation_batch(heldout, "heldout", samples, run.config.run.seed).to(run.ranks.device)
    run.engine.eval()
    corrupted, logits_T = objective.judge(run.engine, batch, run.strength(update))
    run.engine.train()
    piece, sequences = run.corpus.tokenizer.piece, []
    columns = (corrupted.tokens_T, batch.tokens_T, logits_T.sigmoid())
    parts = (column.cpu().split(batch.layout.lengths_B.tolist()) for column in columns)
    for sequence in zip(*parts, strict=True):
        tokens = [
            {
                "piece": piece(shown),
                "original": piece(original),
                "replaced": shown != original,
                "probability": round(probability, 4),
            }
            for shown, original, probability in zip(*(column.tolist() for column in sequence), strict=True)
        ]
        sequences.append({"tokens": tokens})
    write_json(folder / "examples.json", {"update": update, **run.curriculum(update), "sequences": sequences})
