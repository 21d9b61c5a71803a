"""What the tests of the offline store share: runs of several short epochs, their stores, and what a run sees."""

import dataclasses
from pathlib import Path
from typing import Any

import conftest
import small
import torch
from torch import Tensor

from fast_electra.batch import CorruptedBatch, TokenBatch
from fast_electra.config import Config
from fast_electra.corpus.corpus import Corpus
from fast_electra.corpus.frequency import log_frequency, token_counts
from fast_electra.corpus.loader import Loader, Share
from fast_electra.corpus.sequences import Sequences
from fast_electra.corruption import corrupt
from fast_electra.jobs import preprocess
from fast_electra.parts import masking, open_run_corpus
from fast_electra.replacement.auxiliary import AUGMENTATIONS
from fast_electra.replacement.auxiliary_free import auxiliary_free
from fast_electra.replacement.distribution import Distribution
from fast_electra.store.match import open_for_run
from fast_electra.store.reader import Stored
from fast_electra.training.engines import Ranks

BATCH, UPDATES = 24, 10


class Lab:
    """Configs that differ in a few keys, and the corpus and untrained auxiliary that all of them use."""

    def __init__(self, folders: conftest.Corpus, folder: Path) -> None:
        """Keep the config in `folder`. The corpus is one document, so that a run has several epochs."""
        section = {"updates": UPDATES, "auxiliary": {"run": str(folder / "away")}, "evaluation": {"sequences": 12}}
        self.path = folder / "config.json"
        whole = open_run_corpus(small.load(self.path, small.tree(folders, BATCH, **section)).run)
        longest = int(whole.train.shards.lengths.max())
        few = Sequences(whole.train.shards, whole.tokenizer, 40, minimum=longest)
        assert len(few) < UPDATES * BATCH / 2
        self.corpus = dataclasses.replace(whole, train=few)
        self.model = small.masked_lm(relative_start="local")
        self.counts_V = token_counts(few.shards, whole.tokenizer.vocabulary_size)

    def settings(self, **keys: Any) -> Config:
        """The config with other values of `keys`, which have __ for the dot."""
        return small.load(self.path, **keys)

    def distribution(self, settings: Config) -> Distribution:
        """What draws online."""
        replacement, frequency_V = settings.run.replacement, log_frequency(self.counts_V)
        if replacement.distribution == "auxiliary":
            return AUGMENTATIONS[replacement.augmentation](self.model, small.UNK, frequency_V)
        return auxiliary_free(replacement.distribution, len(frequency_V), replacement.alpha, frequency_V)

    def begin(self, settings: Config, folder: Path, part: int = 37) -> preprocess.Store:
        """A planned store, of which nothing is written yet."""
        drawn_by = self.distribution(settings), {"auxiliary_hash": "a" * 32, "auxiliary_dtype": "fp32"}
        return preprocess.begin(settings, self.corpus, drawn_by, folder, small.ALONE, part)

    def write(self, settings: Config, folder: Path, world: int = 2, part: int = 37) -> Path:
        """Write as `preprocess.write` does, but with ranks one after the other, the last first."""
        store = self.begin(settings, folder, part)
        for rank in reversed(range(world)):
            preprocess.write_parts(store, Ranks(rank, world, small.CPU))
        preprocess.finish(store)
        return folder

    def read(self, settings: Config, folder: Path, corpus: Corpus | None = None) -> Stored:
        """Open a store for a run."""
        replacement = settings.run.replacement.model_copy(update={"store": str(folder)})
        run = settings.run.model_copy(update={"replacement": replacement})
        return open_for_run(dataclasses.replace(settings, run=run), corpus or self.corpus, small.ALONE)[0]

    def corrupted(self, settings: Config, draws: Distribution, batch: TokenBatch, strength: float) -> CorruptedBatch:
        """What the main model reads."""
        return corrupt(batch, masking(settings.run, self.corpus.tokenizer), draws, strength)

    def seen(self, settings: Config, draws: Distribution, world: int = 1, steps: int = 1) -> list[Tensor]:
        """The corrupted global batch of every update, read as `world` ranks in `steps` accumulation steps do."""
        run, train = settings.run, self.corpus.train
        found = []
        for n in range(1, run.updates + 1):
            strength = run.curriculum.strength(settings.u(n, len(train)), draws.floor)
            sequences: dict[int, Tensor] = {}
            for rank in range(world):
                share = Share(BATCH // world // steps, steps, world, rank)
                for batch in Loader(train, share, run.seed, run.corruption.mask_fraction).batch(n - 1):
                    tokens_T = self.corrupted(settings, draws, batch, strength).tokens_T
                    parts = tokens_T.split(batch.layout.lengths_B.tolist())
                    sequences |= dict(zip(batch.samples_B.tolist(), parts, strict=True))
            found.append(torch.cat([sequences[sample] for sample in sorted(sequences)]))
        return found
