"""The offline store as a distribution: it returns the draws that it holds, without the model that made them."""

from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from torch import Tensor

from fast_electra.batch import Draws, MaskedBatch
from fast_electra.replacement.distribution import axis_position
from fast_electra.settings import UserError
from fast_electra.store.format import MANIFEST, PartFile, SetRecord, StorePlan, part_name
from fast_electra_kernels import Pieces, concatenate, winners

COMMAND = "deepspeed launch/preprocess.py --deepspeed_config CONFIG --output DIR"
_OPEN_PARTS = 16


class Stored:
    """The draws for each sample of the training stream and of the evaluation sets.

    A store of kind `axis` has the draw at every strength in its range. A store of kind `fixed` has one draw.
    """

    def __init__(self, folder: Path, plan: StorePlan) -> None:
        self.folder, self.plan = folder, plan
        self.parameter, self.floor = plan.parameter, plan.floor
        self._sets = {(record.source, record.value): record for record in plan.sets}
        self._part = lru_cache(maxsize=_OPEN_PARTS)(self._open_part)

    def sample(self, masked: MaskedBatch, strength: float) -> Draws:
        """Return the stored draws at the curriculum's strength. They have tokens, and no figures.

        Raises:
            UserError: the store has no draw at this strength, or a part cannot be read.
        """
        batch = masked.original
        pieces = self._read(self._set(batch.source, strength), batch.samples_B)
        tokens_M = pieces.tokens_P
        if self.plan.kind == "axis":
            tokens_M = winners(pieces, axis_position(self.parameter, strength))
        assert len(tokens_M) == len(masked.positions_M), "the store masks other positions"
        return Draws(tokens_M.to(masked.positions_M.device, non_blocking=True))

    def _set(self, source: str, strength: float) -> SetRecord:
        plan = self.plan
        if plan.kind == "axis":
            assert plan.low is not None and plan.high is not None
            if plan.low <= axis_position(self.parameter, strength) <= plan.high:
                return self._sets[source, None]
        elif record := self._sets.get((source, None if source == "train" else strength)):
            return record
        raise UserError(
            f"{self.folder} holds no draws at {self.parameter} {strength}: "
            f"train with the curriculum that it was written for, or write another store: {COMMAND}"
        )

    def _read(self, record: SetRecord, samples_B: Tensor) -> Pieces:
        """Read each range of neighbouring samples in a part at once: a micro-batch has one or two of them."""
        samples = samples_B.numpy()
        assert samples.min() >= 0 and samples.max() < record.sequences, "samples beyond the store"
        part, place = np.divmod(samples, self.plan.part)
        cuts = np.flatnonzero((np.diff(samples) != 1) | (np.diff(part) != 0)) + 1
        firsts, lasts = [0, *cuts.tolist()], [*(cuts - 1).tolist(), len(samples) - 1]
        ranges = zip(part[firsts].tolist(), place[firsts].tolist(), place[lasts].tolist(), strict=True)
        return concatenate([self._read_part(record.name, number, i, j + 1) for number, i, j in ranges])

    def _read_part(self, name: str, number: int, start: int, stop: int) -> Pieces:
        """Read sequences [start, stop) of a part. Its hash may be right where its content is not."""
        path = self.folder / part_name(name, number)
        try:
            pieces = self._part(name, number).read(start, stop)
        except (OSError, SafetensorError, ValueError, IndexError) as error:
            raise UserError(f"{path} cannot be read ({error}); {remedy(self.folder)}") from None
        if len(pieces.tokens_P) and int(pieces.tokens_P.max()) >= self.plan.vocabulary_size:
            raise UserError(f"{path} holds a token id beyond the vocabulary; {remedy(self.folder)}")
        return pieces

    def _open_part(self, name: str, number: int) -> PartFile:
        return open_part(self.folder, part_name(name, number))


def open_part(folder: Path, name: str) -> PartFile:
    """Open a file of a store; raise a UserError if it is missing, cut off, or something else."""
    try:
        return PartFile(folder / name)
    except (OSError, SafetensorError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / name} cannot be read ({error}); {remedy(folder)}") from None


def remedy(folder: Path) -> str:
    """Return what to do about a damaged store, for an error message."""
    return f"remove that file and {folder / MANIFEST}, and start the preprocessing again, which writes what is missing"
