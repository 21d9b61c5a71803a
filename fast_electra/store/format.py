"""The files of an offline store. It holds only the drawn tokens.

    plan.json                  what is to be written; written first, so that a killed preprocessing can resume
    train-00000.safetensors    parts: a fixed number of sequences each, also heldout-..., reference-...; each is atomic
    manifest.json              the same facts, counts, and the hash of each part; written last

Which positions are masked follows from the noise. So a part has only the tokens, in the order of a batch's masked
positions, in 2 or 3 bytes each. A store of kind `fixed` has one token for each position. A store of kind `axis` has the
pieces of the position's envelope (fast_electra_kernels.envelope): 1 byte for their number, and 4 bytes for the start of
each piece but the first. Offsets of each sequence (4 or 8 bytes) make the rest addressable. No part is read whole.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from fast_electra.files import FileRecord, atomic_file, grant
from fast_electra.settings import Settings, UserError
from fast_electra_kernels import Pieces

PLAN, MANIFEST = "plan.json", "manifest.json"
_METADATA = "fast_electra"
StoreKind = Literal["axis", "fixed"]


class Facts(Settings):
    """What determines the tokens of a store, or of a run. A comparison shows whether the two belong together."""

    exact: dict[str, str | int | float | None]  # must be the same
    most: dict[str, int | float]  # a run may need as much as the store has, or less


class SetRecord(Settings):
    """A set of sequences that are numbered from 0."""

    name: str  # the names of its parts begin with it
    source: str  # as in `TokenBatch`: "train", or an evaluation set, "heldout" or "reference"
    value: float | None  # the strength at which it was drawn; None for kind `axis`, and for "train", where it changes
    sequences: int  # number of them


class StorePlan(Settings):
    """What is known about a store before its first token is drawn."""

    format: Literal[1] = 1  # version of this layout, and of the masks and noise: a change of those must raise it
    kind: StoreKind
    parameter: str | None  # of the distribution
    floor: float  # of the distribution
    low: float | None  # for kind `axis`: the pieces span the positions [low, high] of the axis
    high: float | None
    vocabulary_size: int  # determines the bytes of a token
    part: int  # sequences of a part
    facts: Facts
    sets: list[SetRecord]
    about: dict[str, Any]  # facts about the auxiliary model, which a run from the store repeats

    @property
    def fingerprint(self) -> str:
        """Hash of the plan, which each part holds too."""
        return str(xxhash.xxh3_128_hexdigest(json.dumps(self.model_dump(), sort_keys=True).encode()))

    @property
    def sequences(self) -> int:
        """Number of sequences of all sets."""
        return sum(record.sequences for record in self.sets)

    def parts(self) -> "Iterator[Part]":
        """Yield all parts, in order."""
        for record in self.sets:
            for number, first in enumerate(range(0, record.sequences, self.part)):
                yield Part(record, number, first, min(first + self.part, record.sequences))


class StoreManifest(Settings):
    """What a complete store holds. The numbers are those of all parts together."""

    plan: StorePlan
    positions: int  # masked ones
    pieces: int
    bytes: int
    parts: list[FileRecord]


@dataclass(frozen=True)
class Part:
    """Sequences [first, stop) of a set."""

    set: SetRecord
    number: int
    first: int
    stop: int

    @property
    def name(self) -> str:
        """Name of the file."""
        return part_name(self.set.name, self.number)


def part_name(set_name: str, number: int) -> str:
    """Return the name of the file of part `number` of a set."""
    return f"{set_name}-{number:05d}.safetensors"


def write_part(path: Path, plan: StorePlan, part: Part, counts_B: Tensor, pieces: Pieces) -> None:
    """Write one part atomically; raise a UserError if it cannot be written.

    Each sequence of the part has `counts_B` masked positions, int64. The pieces are those of all these positions; for
    kind `fixed`, one for each.
    """
    counts_M, tokens_P, starts_P = (tensor.cpu().numpy() for tensor in pieces)
    positions = _offsets(counts_B.numpy())
    assert len(positions) == part.stop - part.first + 1 and positions[-1] == len(counts_M)
    arrays = {"positions": positions, "tokens": _pack(tokens_P, plan.vocabulary_size)}
    if plan.kind == "axis":
        assert counts_M.max(initial=1) < 256, "a position has more than 255 pieces"
        first_P = _offsets(counts_M)
        arrays["pieces"] = first_P[positions]
        arrays["counts"] = counts_M.astype(np.uint8)
        arrays["starts"] = np.delete(starts_P, first_P[:-1])
    else:
        assert len(tokens_P) == len(counts_M)
    # One entry, because the order of several would not always be the same.
    label = {_METADATA: json.dumps({"store": plan.fingerprint, "kind": plan.kind, "first": part.first})}
    try:
        with atomic_file(path) as temporary:
            save_file(arrays, temporary, metadata=label)
            grant(temporary)
    except (OSError, SafetensorError) as error:
        remedy = "make room, and start the same command again, which resumes"
        raise UserError(f"{path} cannot be written ({error}): {remedy}") from None


class PartFile:
    """One part, memory-mapped: only what is asked for is read. Its label is empty if the file has none."""

    def __init__(self, path: Path) -> None:
        """Open a file. Raise an OSError or a SafetensorError if it is missing or truncated."""
        self._file = safe_open(path, framework="numpy")
        self._axis = "counts" in self._file.keys()  # noqa: SIM118 (not a dict); the kind is `axis`
        label = json.loads((self._file.metadata() or {}).get(_METADATA, "{}"))
        self.label: dict[str, Any] = label if isinstance(label, dict) else {}
        self.pieces_in_all = self._length("tokens")
        self.positions_in_all = self._length("counts") if self._axis else self.pieces_in_all

    def _length(self, name: str) -> int:
        return int(self._file.get_slice(name).get_shape()[0])

    def _slice(self, name: str, start: int, stop: int) -> np.ndarray:
        stored = self._file.get_slice(name)
        if start == stop:  # safetensors would call this out of bounds
            return np.zeros(0, np.float32 if name == "starts" else np.uint8)
        return np.asarray(stored[start:stop])

    def read(self, start: int, stop: int) -> Pieces:
        """Return the pieces of sequences [start, stop) of the part, start < stop."""
        first, *_, last = self._slice("positions", start, stop + 1).tolist()
        if not self._axis:
            tokens_M = torch.from_numpy(_unpack(self._slice("tokens", first, last)))
            return Pieces(torch.ones_like(tokens_M), tokens_M, torch.full(tokens_M.shape, -torch.inf))
        begin, *_, end = self._slice("pieces", start, stop + 1).tolist()
        counts_M = self._slice("counts", first, last).astype(np.int64)
        starts_P = np.empty(end - begin, np.float32)
        is_first_P = np.zeros(end - begin, np.bool_)
        is_first_P[np.cumsum(counts_M) - counts_M] = True
        starts_P[is_first_P] = -np.inf
        starts_P[~is_first_P] = self._slice("starts", begin - first, end - last)
        tokens_P = _unpack(self._slice("tokens", begin, end))
        return Pieces(torch.from_numpy(counts_M), torch.from_numpy(tokens_P), torch.from_numpy(starts_P))


def _offsets(counts: np.ndarray) -> np.ndarray:
    """Return where each of n ranges begins, and where the last ends: uint32 [n + 1]."""
    offsets = np.concatenate([[0], np.cumsum(counts)])
    assert offsets[-1] < 2**32, "a part has too many sequences"
    return offsets.astype(np.uint32)


def _pack(tokens_P: np.ndarray, vocabulary_size: int) -> np.ndarray:
    """Return token ids as uint16 [P] or, for a large vocabulary, as three bytes each, lowest first: uint8 [P, 3]."""
    assert vocabulary_size <= 2**24
    if vocabulary_size <= 2**16:
        return tokens_P.astype(np.uint16)
    return np.ascontiguousarray(tokens_P.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :3])


def _unpack(packed: np.ndarray) -> np.ndarray:
    """Return what `_pack` was given, int64 [P]."""
    if packed.ndim == 1:
        return packed.astype(np.int64)
    wide = np.zeros((len(packed), 4), np.uint8)
    wide[:, :3] = packed
    return wide.view("<u4")[:, 0].astype(np.int64)
