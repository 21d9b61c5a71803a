"""Starting ranks where no launcher of ours did."""

import pytest

from fast_electra.settings import UserError
from fast_electra.training.engines import start_ranks


@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS"])
def test_several_processes_without_ranks_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each would train alone, all into one run folder."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv(name, "4")
    with pytest.raises(UserError, match=f"{name} says that there are several processes"):
        start_ranks()
