"""Ten held-out sequences as the discriminator sees them, for the report."""

from pathlib import Path

import torch

from fast_electra.corpus.sequences import Sequences
from fast_electra.corpus.tokenizer import Tokenizer
from fast_electra.files import write_json
from fast_electra.objectives.joint import Joint
from fast_electra.objectives.objective import Objective
from fast_electra.objectives.rtd import RTD
from fast_electra.training.engines import Engine, Ranks
from fast_electra.training.loop import evaluation_batch, evaluation_size

COUNT = 10


@torch.no_grad()
def write_examples(
    run: Path,
    objective: Objective,
    engine: Engine,
    heldout: Sequences,
    tokenizer: Tokenizer,
    update: int,
    value: float | None,
    seed: int,
    ranks: Ranks,
) -> None:
    """Writes examples.json: each token of the corrupted sequence, what it was, and the predicted probability.

    Only detection has such examples; for other objectives nothing is written. One rank may call it alone.
    """
    if not isinstance(objective, RTD | Joint):
        return
    samples = torch.arange(evaluation_size(heldout, "heldout", COUNT))
    batch = evaluation_batch(heldout, "heldout", samples, seed).to(ranks.device)
    engine.eval()
    corrupted = objective.corrupt(engine, batch, value)
    probability_BL = engine(corrupted.tokens_BL, batch.attended_BL).float().sigmoid().cpu()
    engine.train()
    shown_BL, original_BL = corrupted.tokens_BL.cpu(), batch.tokens_BL.cpu()
    sequences = [
        {
            "tokens": [
                {
                    "piece": tokenizer.piece(shown),
                    "original": tokenizer.piece(original),
                    "replaced": shown != original,
                    "probability": round(probability, 4),
                }
                for shown, original, probability in zip(
                    shown_BL[row, :length].tolist(),
                    original_BL[row, :length].tolist(),
                    probability_BL[row, :length].tolist(),
                    strict=True,
                )
            ]
        }
        for row, length in enumerate(batch.lengths_B.tolist())
    ]
    curriculum = {} if objective.parameter is None else {objective.parameter: value}
    write_json(run / "examples.json", {"update": update, **curriculum, "sequences": sequences})
