"""Pinned bits: stores on disk rest on them, so a change must be on purpose and raise `noise.VERSION` or the format.

Beside these, tests/kernels pins the sampler's noise, and tests/training/test_runs.py pins ten losses of `tiny`.
"""

import json
from pathlib import Path

import torch

from fast_electra import randomness
from fast_electra.batch import Layout, MaskedBatch, TokenBatch
from fast_electra.corruption import Masking, corrupt, mask
from fast_electra.files import file_hash
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.heads import MaskedLanguageModel
from fast_electra.replacement.auxiliary import Temperature
from fast_electra.replacement.auxiliary_free import auxiliary_free
from fast_electra.store.format import Facts, Part, SetRecord, StorePlan, write_part

GOLDEN = Path(__file__).parent / "golden"
MASKING = Masking(fraction=0.3, mask_id=4)
V = 300


def batch() -> TokenBatch:
    """Four sequences of numbers that nothing but this line decides."""
    which_B = torch.arange(4)
    layout = Layout.of(torch.tensor([16, 16, 11, 7]), randomness.key(11, which_B % 2, which_B))
    tokens_T = 5 + randomness.key(77, layout.sequence_T, layout.position_T) % (V - 5)
    return TokenBatch(tokens_T, layout, which_B)


def test_a_corrupted_batch() -> None:
    """Masked positions and replacements: masks, keys, noise, model's initial weights, Gumbel-max."""
    sizes = EncoderSettings(
        vocabulary_size=V, layers=1, hidden_size=32, ffn_size=64, heads=2, initial_std=0.4, initialization="bert"
    )
    auxiliary = Temperature(MaskedLanguageModel(sizes, seed=7).eval(), unk_id=1)
    corrupted = corrupt(batch(), MASKING, auxiliary, 1.5)
    found = {"tokens_T": corrupted.tokens_T.tolist(), "positions_M": corrupted.masked.positions_M.tolist()}
    assert found == json.loads((GOLDEN / "corrupted.json").read_text())


def test_a_file_of_a_store(tmp_path: Path) -> None:
    """Pieces of every draw along gamma, as bytes: the race of exponentials, the envelope, the file's layout."""
    masked: MaskedBatch = mask(batch(), MASKING)
    pieces = auxiliary_free("uniform_to_smoothed_one_hot", V).pieces(masked, 0.0, 1.0)
    counts_B = torch.bincount(masked.layout.sequence_T[masked.positions_M], minlength=4)
    record = SetRecord(name="train", source="train", value=None, sequences=4)
    plan = StorePlan(
        kind="axis", parameter="gamma", floor=0.0, low=0.0, high=1.0, vocabulary_size=V, part=4,
        facts=Facts(exact={}, most={}), sets=[record], about={},
    )  # fmt: skip
    write_part(tmp_path / "part.safetensors", plan, Part(record, 0, 0, 4), counts_B, pieces)
    assert file_hash(tmp_path / "part.safetensors") == "17cf8a423136556a25ba559258661bdf"
