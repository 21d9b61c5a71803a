"""The offline store as a distribution: it returns the draws that it holds, without the model that made them."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from torch import Tensor

from fast_electra.batch import Draws, MaskedBatch
from fast_electra.files import check_files, read_settings
from fast_electra.replacement.distribution import axis_position
from fast_electra.settings import UserError
from fast_electra.store.format import MANIFEST, PLAN, Facts, PartFile, SetRecord, StoreKind, StoreManifest
from fast_electra_kernels import Pieces, concatenate, winners

COMMAND = "deepspeed launch/preprocess.py --deepspeed_config CONFIG --output DIR"
OPEN_PARTS = 16


class Stored:
    """The draws for each sample of the training stream and of the evaluation sets.

    A store of kind `axis` has the draw at every strength in its range. A store of kind `fixed` has one draw.
    """

    def __init__(self, folder: Path, manifest: StoreManifest) -> None:
        """Read a checked store; `open_store` checks one."""
        plan = manifest.plan
        self.folder, self.plan = folder, plan
        self.parameter = plan.parameter
        self.floor = plan.floor
        self._sets = {(record.source, record.value): record for record in plan.sets}
        self._part = lru_cache(maxsize=OPEN_PARTS)(self._open_part)

    def sample(self, masked: MaskedBatch, strength: float) -> Draws:
        """Return the stored draws at the curriculum's strength. They have tokens, and no figures.

        Raises:
            UserError: the store has no draw at this strength, or a part cannot be read.
        """
        batch = masked.original
        pieces = self._read(self._set(batch.source, strength), batch.samples_B)
        tokens_M = (
            winners(pieces, axis_position(self.parameter, strength)) if self.plan.kind == "axis" else pieces.tokens_P
        )
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
        return concatenate(
            [
                self._part(record.name, int(part[i])).read(int(place[i]), int(place[j]) + 1)
                for i, j in zip(firsts, lasts, strict=True)
            ]
        )

    def _open_part(self, name: str, number: int) -> PartFile:
        path = self.folder / f"{name}-{number:05d}.safetensors"
        try:
            return PartFile(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read ({error}); {remedy(self.folder)}") from None


def open_store(folder: Path, facts_of_run: Callable[[StoreKind], Facts], verify: bool) -> Stored:
    """Open a complete store after checking that it belongs to the run and is undamaged.

    Args:
        folder: of the store.
        facts_of_run: returns what determines the tokens of the run, as far as a store of that kind depends on it. A
            fact that the run does not know may be left out.
        verify: also hash the contents; without it only the sizes are checked. One rank verifies for all.

    Raises:
        UserError: the store is not complete, belongs to another run, or is damaged.
    """
    manifest = read_manifest(folder)
    check_belongs(folder, manifest.plan.facts, facts_of_run(manifest.plan.kind))
    check_files(folder, manifest.parts, remedy(folder), verify)
    return Stored(folder, manifest)


def read_manifest(folder: Path) -> StoreManifest:
    """Return the manifest of a store. Raise a UserError if there is no store, or if it is not complete."""
    path = folder / MANIFEST
    missing = f"there is no store in {folder} ({path} is missing): write one with {COMMAND}"
    if (folder / PLAN).exists():
        missing = f"the store {folder} is not complete: finish it with the command that started it ({COMMAND})"
    return read_settings(path, StoreManifest, missing, remedy(folder))


def check_belongs(folder: Path, stored: Facts, run: Facts) -> None:
    """Raise a UserError that names the first fact in which a store and a run differ."""
    another = f"use another store, or write a new one: {COMMAND}"
    for name, value in run.exact.items():
        if (was := stored.exact.get(name)) != value:
            raise UserError(
                f"the store {folder} does not belong to this run: {name} was {_short(was)} when it was written and is "
                f"{_short(value)} here; set it back, {another}"
            )
    for name, value in run.most.items():
        if (most := stored.most.get(name, 0)) < value:
            raise UserError(
                f"the store {folder} is too small for this run: it covers {name} up to {most:,}, the run asks for "
                f"{value:,}. Lower it, {another}"
            )


def remedy(folder: Path) -> str:
    """Return what to do about a damaged store, for an error message."""
    return f"remove that file and {folder / MANIFEST}, and start the preprocessing again, which writes what is missing"


def _short(value: str | int | float | None) -> str:
    """Return the first digits of a hash; any other value in full."""
    return value[:12] if isinstance(value, str) and len(value) >= 32 else str(value)
