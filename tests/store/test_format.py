"""Parts give back what was written, in as few bytes as promised."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fast_electra.settings import UserError
from fast_electra.store.format import Facts, Part, PartFile, SetRecord, StorePlan, write_part
from fast_electra_kernels import Pieces


def made_up(vocabulary_size: int, sequences: int, kind: str = "axis") -> tuple[StorePlan, Part, Tensor, Pieces]:
    """Draws as the paper's model would have them: 76 or 77 masked positions, 1.75 pieces each."""
    generator = torch.Generator().manual_seed(3)
    counts_B = 76 + torch.randint(0, 2, (sequences,), generator=generator)
    m = int(counts_B.sum())
    counts_M = torch.ones(m, dtype=torch.int64)
    if kind == "axis":
        counts_M += (
            torch.randint(0, 4, (m,), generator=generator) // 2 + torch.randint(0, 4, (m,), generator=generator) // 3
        )
    p = int(counts_M.sum())
    tokens_P = torch.randint(0, vocabulary_size, (p,), generator=generator)
    starts_P = torch.rand(p, generator=generator)
    starts_P[counts_M.cumsum(0) - counts_M] = -torch.inf
    train = SetRecord(name="train", source="train", value=None, sequences=sequences)
    facts = Facts(exact={}, most={})
    plan = StorePlan(
        kind="axis" if kind == "axis" else "fixed",
        parameter="temperature",
        floor=1.0,
        low=0.5,
        high=1.0,
        vocabulary_size=vocabulary_size,
        part=sequences,
        facts=facts,
        sets=[train],
        about={},
    )
    return plan, next(plan.parts()), counts_B, Pieces(counts_M, tokens_P, starts_P)


@pytest.mark.parametrize("kind", ["axis", "fixed"])
@pytest.mark.parametrize("vocabulary_size", [65_536, 65_537, 2**24])
def test_part_gives_back_what_was_written(vocabulary_size: int, kind: str, tmp_path: Path) -> None:
    plan, part, counts_B, pieces = made_up(vocabulary_size, 50, kind)
    pieces.tokens_P[:2] = torch.tensor([0, vocabulary_size - 1])
    write_part(tmp_path / part.name, plan, part, counts_B, pieces)
    file = PartFile(tmp_path / part.name)
    first_B = torch.cat([torch.zeros(1, dtype=torch.int64), counts_B.cumsum(0)])
    first_M = torch.cat([torch.zeros(1, dtype=torch.int64), pieces.counts_M.cumsum(0)])
    for start, stop in ((0, 50), (0, 1), (49, 50), (13, 37)):
        found = file.read(start, stop)
        positions = slice(int(first_B[start]), int(first_B[stop]))
        of_pieces = slice(int(first_M[positions.start]), int(first_M[positions.stop]))
        assert torch.equal(found.counts_M, pieces.counts_M[positions])
        assert torch.equal(found.tokens_P, pieces.tokens_P[of_pieces])
        assert torch.equal(found.starts_P, pieces.starts_P[of_pieces])
        assert found.tokens_P.dtype == torch.int64 and found.starts_P.dtype == torch.float32


def test_bytes_of_a_sequence_of_the_paper(tmp_path: Path) -> None:
    """512 positions, 128,000 tokens, 1.75 pieces: 256 M sequences in less than 200 GB."""
    for kind, (least, most) in {"axis": (690, 750), "fixed": (230, 250)}.items():
        plan, part, counts_B, pieces = made_up(128_000, 2000, kind)
        assert kind == "fixed" or abs(float(pieces.counts_M.double().mean()) - 1.75) < 0.01
        write_part(tmp_path / part.name, plan, part, counts_B, pieces)
        assert least < (tmp_path / part.name).stat().st_size / 2000 < most


def test_a_full_disk_is_said_in_one_line(tmp_path: Path) -> None:
    plan, part, counts_B, pieces = made_up(1000, 10)
    with pytest.raises(UserError, match=r"cannot be written .*: make room, and start the same command again"):
        write_part(tmp_path / "missing" / part.name, plan, part, counts_B, pieces)
