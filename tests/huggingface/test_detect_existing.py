"""`detect` with a discriminator and an auxiliary in directories of Hugging Face."""

from pathlib import Path

import pytest
import torch

from fast_electra.detect.detector import load_auxiliary, load_discriminator
from fast_electra.settings import UserError

transformers = pytest.importorskip("transformers")
from huggingface.pairs import words  # noqa: E402 (it needs transformers)
from huggingface.zoo import config_of, masked_lm, shaken  # noqa: E402

TEXT = "w1 w2 w3 w50 w60 w7"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("detect")
    shaken(transformers.ElectraForPreTraining(config_of("electra"))).save_pretrained(place / "electra")
    masked_lm(place / "bert", "bert")
    for name in ("electra", "bert"):
        words().save_pretrained(place / name)
    return place


def test_probabilities_are_those_of_transformers(folder: Path) -> None:
    detector = load_discriminator(folder / "electra", sequence_length=64)
    found = [token.probability for token in detector.detect(TEXT)]
    theirs = transformers.ElectraForPreTraining.from_pretrained(folder / "electra").eval()
    inputs = transformers.AutoTokenizer.from_pretrained(folder / "electra")(TEXT, return_tensors="pt")
    with torch.no_grad():
        wanted = theirs(input_ids=inputs["input_ids"]).logits[0, 1:-1].sigmoid()
    torch.testing.assert_close(torch.tensor(found), wanted, rtol=1e-4, atol=1e-5)
    assert detector.spelt(TEXT).split() == TEXT.split()


def test_a_model_takes_as_many_tokens_as_its_tokenizer_allows(folder: Path, tmp_path: Path) -> None:
    transformers.ElectraForPreTraining(config_of("electra", max_position_embeddings=16)).save_pretrained(tmp_path)
    its = words()
    its.model_max_length = 16
    its.save_pretrained(tmp_path)
    detector = load_discriminator(tmp_path)
    assert detector.sequence_length == 16 and len(detector.detect(" ".join([TEXT] * 9))) == 54
    (tmp_path / "fast_electra.json").write_text('{"sequence_length": 8')
    with pytest.raises(UserError, match=r"fast_electra.json cannot be read \(.*\); restore it"):
        load_discriminator(tmp_path)


def test_an_auxiliary_corrupts(folder: Path) -> None:
    detector = load_discriminator(folder / "electra", sequence_length=64)
    corrupted = detector.corrupt(TEXT, load_auxiliary(folder / "bert", detector), 2.0)
    assert len(corrupted.replaced) == 6 and len(corrupted.text.split()) == 6


def test_what_has_no_head_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="has no head for replaced tokens: name a run"):
        load_discriminator(folder / "bert")


def test_a_directory_without_a_tokenizer_needs_it_named(folder: Path, tmp_path: Path) -> None:
    transformers.ElectraForPreTraining(config_of("electra")).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"holds no tokenizer: name .* with --tokenizer"):
        load_discriminator(tmp_path, sequence_length=64)
    assert load_discriminator(tmp_path, folder / "bert", sequence_length=64).detect(TEXT)
