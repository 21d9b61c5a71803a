"""The loss of fine-tuning (C.1): a class, or a number, for each sequence."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fast_electra.batch import TokenBatch, moved
from fast_electra.objectives.objective import Export, Forward, Row, Sums

Scores = Callable[[str, np.ndarray], Mapping[str, float]]  # a set's name and its outputs [n, C] to its metrics


class FineTuning:
    """Mean cross-entropy over the sequences of a batch; for a regression, the mean squared error over the variance.

    A regression's loss is then the share of the training labels' variance that is not explained: 1 for their mean.
    Its model learns what a value is more or less than that mean, which is added in fp32: years would have 8 bits in
    bf16. The model that is written has the mean in its last bias.
    """

    name = "finetuning"
    parameter: str | None = None

    def __init__(
        self,
        model: nn.Module,
        labels: dict[str, Tensor],
        sizes: dict[str, int],
        regression: bool,
        batch: int,
        scores: Scores,
        exports: Callable[[dict[str, Tensor]], list[Export]],
    ) -> None:
        """Train a model that returns [B, C] from (tokens_T, layout).

        Args:
            model: what is trained.
            labels: class numbers or values of each set that has any, float64 [n]; "train" is one of them.
            sizes: number of sequences n of each set that is evaluated. Sets without labels are only predicted.
            regression: whether the labels are values; C is then 1.
            batch: number of sequences of an update over all ranks.
            scores: what measures the outputs of a set.
            exports: see `Objective.exports`.
        """
        self.model, self.labels, self.sizes, self.regression = model, labels, sizes, regression
        self.batch, self.scores, self._exports = batch, scores, exports
        self.sources: tuple[str, ...] = tuple(name for name in sizes if name in labels)
        self.variance, self.mean, self.last_bias = 1.0, 0.0, _last_bias(model) if regression else None
        if regression:
            self.variance = float(labels["train"].var(correction=0)) or 1.0
        if self.last_bias is not None:
            self.mean = float(labels["train"].mean())
            model.get_parameter(self.last_bias).data.zero_()
        self.outputs: dict[str, np.ndarray[Any, Any]] = {}  # of each set, [n, C], as of its last evaluation

    def strength(self, u: float) -> None:
        """Return None: there is no curriculum."""
        return None

    def loss(self, forward: Forward, batch: TokenBatch, strength: float | None) -> tuple[Tensor, Sums]:
        """See `Objective`; the sums are `loss`, `sequences`, and for classes `correct`."""
        loss_sum, sums = self._loss(self._outputs(forward, batch), batch)
        return loss_sum / self.batch, sums

    def exports(self, weights: dict[str, Tensor]) -> list[Export]:
        """See `Objective`."""
        if self.last_bias is not None:
            weights = weights | {self.last_bias: weights[self.last_bias].detach() + self.mean}
        return self._exports(weights)

    def _outputs(self, forward: Forward, batch: TokenBatch) -> Tensor:
        return forward(batch.tokens_T, batch.layout).float() + self.mean

    def _loss(self, outputs_BC: Tensor, batch: TokenBatch) -> tuple[Tensor, Sums]:
        labels_B = moved(self.labels[batch.source][batch.sequences_B], outputs_BC.device)
        count = torch.full((), len(labels_B), dtype=torch.float64, device=outputs_BC.device)
        if self.regression:
            loss_sum = F.mse_loss(outputs_BC[:, 0], labels_B.float(), reduction="sum") / self.variance
            return loss_sum, {"loss": loss_sum.detach().double(), "sequences": count}
        loss_sum = F.cross_entropy(outputs_BC, labels_B.long(), reduction="sum")
        correct = (outputs_BC.argmax(1) == labels_B.long()).sum().double()
        return loss_sum, {"loss": loss_sum.detach().double(), "sequences": count, "correct": correct}

    def summary(self, sums: Sums) -> Row:
        """Return `loss`, and for classes `accuracy`."""
        return {
            name: float(sums[key] / sums["sequences"])
            for name, key in (("loss", "loss"), ("accuracy", "correct"))
            if key in sums
        }

    def evaluate(self, forward: Forward, batch: TokenBatch, strength: float | None) -> Sums:
        """Return the outputs [n, C] of a set, 0 outside this batch, and the sums of its loss; see `Objective`."""
        outputs_BC = self._outputs(forward, batch)
        all_nC = outputs_BC.new_zeros((self.sizes[batch.source], outputs_BC.shape[1]), dtype=torch.float64)
        assert batch.sequences_B is not None
        all_nC[moved(batch.sequences_B, all_nC.device)] = outputs_BC.double()
        found = {f"{batch.source} outputs": all_nC}
        if batch.source in self.labels:
            _, sums = self._loss(outputs_BC, batch)
            found |= {f"{batch.source} {name}": value for name, value in sums.items()}
        return found

    def evaluation(self, sums: Sums) -> Row:
        """Return loss and metrics of each dev set, such as `heldout_accuracy`, and keep the outputs of all sets.

        `heldout_score` is the mean of the task's first metric over the dev sets. The names of further dev sets become
        part of the keys: `heldout_mismatched_accuracy` of the set "dev_mismatched".
        """
        row, firsts = Row(), []
        for source in (key.removesuffix(" outputs") for key in sums if key.endswith(" outputs")):
            self.outputs[source] = sums[f"{source} outputs"].numpy()
            if source not in self.labels:
                continue
            prefix = "_".join(["heldout", *source.split("_")[1:]])
            row[f"{prefix}_loss"] = float(sums[f"{source} loss"] / sums[f"{source} sequences"])
            measured = self.scores(source, self.outputs[source])
            row |= {f"{prefix}_{name}": value for name, value in measured.items()}
            firsts.append(next(iter(measured.values())))
        return row | ({"heldout_score": float(np.mean(firsts))} if firsts else {})


def _last_bias(model: nn.Module) -> str | None:
    """Return the name of the bias of the last layer, whose one output is the prediction; None if it has none."""
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    names = [f"{name}.bias" for name, layer in layers if layer.out_features == 1 and layer.bias is not None]
    return names[-1] if names else None
