"""Parts that do not belong together are refused before anything is trained."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import Corpus

from fast_electra.auxiliary import open_auxiliary
from fast_electra.config import RunConfig
from fast_electra.model.encoder import EncoderSettings
from fast_electra.model.files import save_model
from fast_electra.model.heads import Discriminator, MaskedLanguageModel
from fast_electra.parts import open_run_corpus
from fast_electra.settings import UserError
from fast_electra.text.train_tokenizer import train_tokenizer
from fast_electra.training.engines import Ranks

RANKS = Ranks(0, 1, torch.device("cpu"))


def run_config(corpus: Corpus, auxiliary: str = "none", vocabulary_size: int | None = None) -> RunConfig:
    sizes = {"layers": 1, "hidden_size": 16, "ffn_size": 32, "heads": 2}
    return RunConfig.model_validate(
        {
            "objective": "rtd",
            "recipe": "tiny",
            "run": "unused",
            "updates": 1,
            "model": {**sizes, "vocabulary_size": vocabulary_size or corpus.vocabulary_size},
            "corpus": {"shards": str(corpus.shards), "tokenizer": str(corpus.tokenizer), "sequence_length": 32},
            "auxiliary": {"run": auxiliary, "dtype": "fp32"},
        }
    )


@pytest.fixture
def other_tokenizer(tmp_path: Path) -> Corpus:
    (tmp_path / "text.txt").write_text("\n\n".join(f"some other text number {i} about whales" for i in range(3000)))
    train_tokenizer([tmp_path / "text.txt"], tmp_path / "tokenizer", vocabulary=300)
    return Corpus(tmp_path / "tokenizer", tmp_path / "shards", 300)


def auxiliary_run(folder: Path, model: torch.nn.Module, settings: EncoderSettings, tokenizer_hash: str) -> str:
    kind = "mlm" if isinstance(model, MaskedLanguageModel) else "rtd"
    save_model(folder / "model", kind, settings, model.state_dict(), tokenizer=tokenizer_hash, evaluation={})
    return str(folder)


def test_whole_corpus_opens_with_both_splits(tiny_corpus: Corpus) -> None:
    corpus = open_run_corpus(run_config(tiny_corpus), RANKS)
    assert len(corpus.train) > 0 and corpus.heldout is not None and len(corpus.heldout) > 0


def test_altered_shards_are_refused(tiny_corpus: Corpus, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(tiny_corpus.shards, shards)
    for name in ("train-00000.bin", "heldout-00000.bin"):
        data = shards / name
        whole = data.read_bytes()
        data.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1, whole[-1]]))
        with pytest.raises(UserError, match=f"{name} was altered"):
            open_run_corpus(run_config(tiny_corpus._replace(shards=shards)), RANKS)
        data.write_bytes(whole)


def test_tokenizer_of_another_size_is_refused(tiny_corpus: Corpus) -> None:
    with pytest.raises(UserError, match=r"1000 entries .* is 2000: .*vocabulary_size=1000"):
        open_run_corpus(run_config(tiny_corpus, vocabulary_size=2000))


def test_tokenizer_that_did_not_make_the_shards_is_refused(tiny_corpus: Corpus, other_tokenizer: Corpus) -> None:
    mixed = other_tokenizer._replace(shards=tiny_corpus.shards)
    with pytest.raises(UserError, match="made with another tokenizer"):
        open_run_corpus(run_config(mixed))


def test_auxiliary_is_checked(tiny_corpus: Corpus, tmp_path: Path) -> None:
    corpus = open_run_corpus(run_config(tiny_corpus))
    with pytest.raises(UserError, match=r"holds no trained model; train the auxiliary first .*tiny_auxiliary.json"):
        open_auxiliary(run_config(tiny_corpus, str(tmp_path / "none")), corpus)

    settings = run_config(tiny_corpus).model
    model = MaskedLanguageModel(settings)
    other = auxiliary_run(tmp_path / "other", model, settings, "0" * 64)
    with pytest.raises(UserError, match="trained with another tokenizer"):
        open_auxiliary(run_config(tiny_corpus, other), corpus)

    main = auxiliary_run(tmp_path / "main", Discriminator.new(settings), settings, corpus.tokenizer.hash)
    with pytest.raises(UserError, match="holds a model of kind 'rtd', not 'mlm'"):
        open_auxiliary(run_config(tiny_corpus, main), corpus)

    damaged = auxiliary_run(tmp_path / "damaged", model, settings, corpus.tokenizer.hash)
    weights = tmp_path / "damaged" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(UserError, match="is not what was written"):
        open_auxiliary(run_config(tiny_corpus, damaged), corpus)


def test_auxiliary_with_broken_weights_says_so(tiny_corpus: Corpus, tmp_path: Path) -> None:
    """NaN weights must not become replacements."""
    from fast_electra.corpus.loader import Loader, Share
    from fast_electra.corruption import Masking, mask
    from fast_electra.replacement.auxiliary import Temperature

    model = MaskedLanguageModel(run_config(tiny_corpus).model).eval()
    with torch.no_grad():
        model.bias[3] = torch.nan
    loader = Loader(open_run_corpus(run_config(tiny_corpus)).train, Share(2, 1), 0, 0.15)
    masked = mask(loader.batch(0)[0], Masking(0.15, 4))
    with pytest.raises(UserError, match="the auxiliary model cannot be sampled from"):
        Temperature(model, unk_id=1).sample(masked, 1.0)
