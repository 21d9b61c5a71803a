"""What a run's config.json says of its folder: the files that the run was made from, wherever they lie now."""

import os
from pathlib import Path
from typing import Any, NamedTuple, Self

from pydantic import ConfigDict

from fast_electra.corpus.corpus import CorpusSettings
from fast_electra.corruption import CorruptionSettings
from fast_electra.files import read_settings
from fast_electra.settings import LocalPath, Settings

CONFIG = "config.json"
_REMEDY = "restore it, or start the run's command again, which checks it"


class _Section(Settings):
    """The keys that are read here of a section, which has others."""

    model_config = ConfigDict(extra="ignore")


class _Auxiliary(_Section):
    run: LocalPath | None = None


class _Replacement(_Section):
    store: LocalPath | None = None


class RunRecord(_Section):
    """The section `fast_electra`, of pre-training or of fine-tuning."""

    run: LocalPath
    updates: int
    seed: int = 0
    objective: str = "fine-tuning"
    recipe: str | None = None
    task: str | None = None
    corpus: CorpusSettings | None = None
    corruption: CorruptionSettings = CorruptionSettings()
    auxiliary: _Auxiliary | None = None
    replacement: _Replacement = _Replacement()
    pretrained: LocalPath | None = None  # what was fine-tuned
    tokenizer: LocalPath | None = None  # in fine-tuning; by default that of what was fine-tuned


class _Config(_Section):
    fast_electra: RunRecord
    corpus_hash: str | None = None
    auxiliary_hash: str | None = None
    model_hash: Any = None


class RunFolder(NamedTuple):
    """A run folder, and what its config.json says."""

    folder: Path
    record: RunRecord
    corpus_hash: str | None  # of the shards that the run began with; None in fine-tuning
    auxiliary_hash: str | None  # None if no auxiliary model drew the replacements
    model_hash: str | None  # of our model that was fine-tuned; None if it is not ours, or in pre-training

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the config.json of a run folder.

        Raises:
            UserError: it is missing, altered, or that of something else.
        """
        path = folder / CONFIG
        config = read_settings(path, _Config, f"{folder} is no run folder: {path} is missing", _REMEDY)
        own = config.model_hash if isinstance(config.model_hash, str) else None
        return cls(folder, config.fast_electra, config.corpus_hash, config.auxiliary_hash, own)

    @property
    def tokenizer(self) -> Path | None:
        """Folder of the run's tokenizer, as `found` finds it; None if the config names none."""
        named = self.record.tokenizer if self.record.corpus is None else self.record.corpus.tokenizer
        return None if named is None else self.found(named)

    def found(self, named: str) -> Path:
        """Return where a path of the config lies now: where it lay beside the run, or else where the config says.

        A relative path counts from where the run was started, and whole experiments are moved.
        """
        beside = Path(os.path.realpath(self.folder.resolve() / os.path.relpath(named, self.record.run)))
        return _from_here(beside) if beside.exists() else Path(named)


def run_above(folder: Path) -> RunFolder | None:
    """Return the run that a part of it belongs to, such as its model; None if the folder above is no run folder."""
    above = _from_here(folder.resolve().parent)
    return RunFolder.open(above) if (above / CONFIG).is_file() else None


def _from_here(path: Path) -> Path:
    """Return a path, relative if it is below the current folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
