"""A discriminator asked about text sees what it saw in training, and its spans are those of the text."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Corpus
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ranks import Scenario
from sklearn.metrics import roc_auc_score

from fast_electra import load_discriminator
from fast_electra.cli import main
from fast_electra.corpus.corpus import CorpusSettings, open_corpus
from fast_electra.corpus.loader import read_batch
from fast_electra.corpus.pieces import spell
from fast_electra.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from fast_electra.corruption import Masking
from fast_electra.curriculum import CurriculumSettings
from fast_electra.detect import detector as module
from fast_electra.detect.detector import Corrupted, Detector, Token, load_auxiliary
from fast_electra.files import read_json, write_sealed
from fast_electra.objectives.rtd import RTD
from fast_electra.replacement.auxiliary import Temperature
from fast_electra.settings import UserError

NASTY = "\u2581 a\u2581b  \n\n\r\n\t\x0b\x1b[31m <0x0A> [MASK] é e\u0301 👩‍👩‍👧 東京 \ufeff\ufffd \U0010ffff\x85 end "
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)


@pytest.fixture(scope="module")
def runs(scenario: Scenario) -> Path:
    return scenario("plain")


@pytest.fixture(scope="module")
def detector(runs: Path) -> Detector:
    return load_discriminator(runs / "plain")


@pytest.fixture(scope="module")
def auxiliary(runs: Path, detector: Detector) -> Temperature:
    return load_auxiliary(runs / "auxiliary", detector)


@pytest.fixture(scope="module")
def tokenizer(tiny_corpus: Corpus) -> SentencePieceTokenizer:
    return SentencePieceTokenizer.load(tiny_corpus.tokenizer)


@settings(max_examples=300, deadline=None)
@given(texts)
@example(NASTY)
@example("")
def test_spans_reproduce_the_text(tokenizer: SentencePieceTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    spelt, spans = spell([tokenizer.piece(token) for token in ids])
    assert spelt == text and len(spans) == len(ids)
    assert "".join(text[start:end] for start, end in dict.fromkeys(spans)) == text
    for token, (start, end) in zip(ids, spans, strict=True):
        if 5 <= token < 261:  # a byte
            assert end == start + 1 and token - 5 in text[start:end].encode()
        else:
            assert text[start:end] == tokenizer.piece(token).replace("\u2581", " ")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.integers(5, 999), st.integers(5 + 0x7F, 260)), max_size=30))
def test_any_drawn_tokens_are_spelt_as_the_tokenizer_decodes_them(
    tokenizer: SentencePieceTokenizer, ids: list[int]
) -> None:
    spelt, spans = spell([tokenizer.piece(token) for token in ids])
    assert spelt == tokenizer.decode(ids) and len(spans) == len(ids)
    assert [end for _, end in dict.fromkeys(spans)][-1:] == [len(spelt)][: len(ids)]


def test_a_document_is_corrupted_and_judged_as_the_run_did_it(
    detector: Detector, auxiliary: Temperature, tiny_corpus: Corpus
) -> None:
    """Same pieces, same masks, same draws, same probabilities; the text is many sequences long."""
    corpus = open_corpus(CorpusSettings(**_corpus(tiny_corpus)), tiny_corpus.vocabulary_size, verify=False)
    document = corpus.train.shards.tokens(0, 0, int(corpus.train.shards.lengths[0]))
    count = int(corpus.train._first[1])
    assert count > 10 and detector.sequence_length == 32
    text = corpus.tokenizer.decode(document.tolist())
    objective = RTD(detector.model, auxiliary, CurriculumSettings(), Masking(0.15, corpus.tokenizer.mask_id))
    which = torch.arange(count)
    batch = read_batch(corpus.train, 5, which, which, torch.zeros_like(which))
    with torch.no_grad():
        judged = objective.judge(detector.model, batch, 1.5)
        clean_T = detector.model(batch.tokens_T, batch.layout)[batch.layout.maskable_T].sigmoid()
    inner_T = batch.layout.maskable_T
    tokens = detector.detect(text)
    assert [token.piece for token in tokens] == [corpus.tokenizer.piece(i) for i in document]
    assert torch.allclose(torch.tensor([token.probability for token in tokens]), clean_T, atol=1e-6)

    corrupted = detector.corrupt(text, auxiliary, 1.5, seed=5)
    ids_T = judged.corrupted.tokens_T[inner_T]
    assert [token.piece for token in corrupted.tokens] == [corpus.tokenizer.piece(int(i)) for i in ids_T]
    assert corrupted.replaced == judged.corrupted.replaced_T[inner_T].tolist() and any(corrupted.replaced)
    found_T, logits_T = torch.tensor([token.probability for token in corrupted.tokens]), judged.logits_T[inner_T]
    assert torch.allclose(found_T, logits_T.sigmoid(), atol=1e-6)
    spans = dict.fromkeys(token.span for token in corrupted.tokens)
    assert "".join(corrupted.text[start:end] for start, end in spans) == corrupted.text
    assert "".join(text[start:end] for start, end in dict.fromkeys(corrupted.spans)) == text
    assert detector.corrupt(text, auxiliary, 1.5, seed=6).replaced != corrupted.replaced


def _corpus(folders: Corpus) -> dict[str, object]:
    return {"shards": str(folders.shards), "tokenizer": str(folders.tokenizer), "sequence_length": 32}


def test_batches_change_nothing_and_hidden_states_are_those_of_the_tokens(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = NASTY * 20
    whole, hidden = detector.detect(long), detector.encode(["", long, "a b"])
    assert [len(states) for states in hidden] == [0, len(whole), len(detector.detect("a b"))]
    with torch.no_grad():
        head_T = detector.model.output(torch.nn.functional.gelu(detector.model.transform(hidden[1]))).squeeze(1)
    expected_T = torch.tensor([token.probability for token in whole])
    assert torch.allclose(head_T.sigmoid(), expected_T, atol=1e-6)
    monkeypatch.setattr(module, "TOKENS", 64)  # two sequences a batch
    again_T = torch.tensor([token.probability for token in detector.detect(long)])
    assert torch.allclose(again_T, expected_T, atol=1e-6)


def test_the_summary_agrees_with_scikit_learn() -> None:
    scores, replaced = [0.9, 0.5, 0.5, 0.2, 0.7, 0.1], [True, True, False, False, False, True]
    tokens = [Token("a", i, i + 1, score) for i, score in enumerate(scores)]
    summary, area = Corrupted("aaaaaa", tokens, replaced, []).summary(0.5), roc_auc_score(replaced, scores)
    assert summary == {"tokens": 6, "replaced": 3, "found": 2, "accused": 2, "auc": pytest.approx(area)}
    assert Corrupted("a", tokens[:1], [False], []).summary()["auc"] is None


def test_the_package_is_light_until_it_is_asked() -> None:
    code = (
        "import sys, fast_electra; assert 'torch' not in sys.modules; fast_electra.load_discriminator\n"
        "assert 'torch' in sys.modules and 'deepspeed' not in sys.modules and not hasattr(fast_electra, 'other')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_moved_run_and_a_model_alone(runs: Path, tiny_corpus: Corpus, tmp_path: Path) -> None:
    """A run moved with its tokenizer finds it there; a model folder alone needs to be told."""
    moved, text = tmp_path / "runs" / "plain", "as it was"
    shutil.copytree(runs / "plain", moved, ignore=shutil.ignore_patterns("checkpoints"))
    config = json.loads((moved / "config.json").read_text())
    config["fast_electra"] |= {"run": "runs/plain"}
    config["fast_electra"]["corpus"]["tokenizer"] = "text/tokenizer"
    config.pop("checksum")
    (moved / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"no folder text/tokenizer with the tokenizer of {moved}/model: name its"):
        load_discriminator(moved)
    shutil.copytree(tiny_corpus.tokenizer, tmp_path / "text" / "tokenizer")
    expected = load_discriminator(runs / "plain").detect(text)
    assert load_discriminator(moved).detect(text) == expected
    assert load_discriminator(moved / "model").detect(text) == expected
    shutil.move(moved / "model", tmp_path / "alone")
    with pytest.raises(UserError, match="is not in a run folder"):
        load_discriminator(tmp_path / "alone")
    alone = load_discriminator(tmp_path / "alone", tiny_corpus.tokenizer)
    assert alone.sequence_length == 32 and alone.detect(text) == expected and alone.mask_fraction == 0.15
    described = read_json(tmp_path / "alone/model.json")
    del described["sequence_length"]  # as older versions wrote it
    write_sealed(tmp_path / "alone/model.json", described)
    with pytest.raises(UserError, match="name it with --sequence-length"):
        load_discriminator(tmp_path / "alone", tiny_corpus.tokenizer)
    assert load_discriminator(tmp_path / "alone", tiny_corpus.tokenizer, 32).detect(text) == expected


def test_a_mistake_in_a_notebook_is_one_line(
    detector: Detector, auxiliary: Temperature, runs: Path, tiny_corpus: Corpus, tmp_path: Path
) -> None:
    shutil.copytree(tiny_corpus.tokenizer, tmp_path / "other")
    (tmp_path / "other" / "tokenizer.model").write_bytes(b"damaged")
    for act, says in (
        (lambda: detector.detect("ab\0c"), "character 3 of the text is a NUL"),
        (lambda: detector.detect("\ud800"), "character 1 of the text is a lone surrogate"),
        (lambda: detector.encode("text"), "encode takes a list"),
        (lambda: detector.corrupt("a", auxiliary, 0.0), "at least 0.01, not 0"),
        (lambda: detector.corrupt("a", auxiliary, float("nan")), "not nan"),
        (lambda: detector.corrupt("a", auxiliary, 1.0, seed=2**62), "the seed must be"),
        (lambda: load_discriminator(runs / "auxiliary"), "a model of kind 'mlm', not 'rtd'; name a completed run"),
        (lambda: load_auxiliary(runs / "plain", detector), "a model of kind 'rtd', not 'mlm'"),
        (lambda: load_discriminator(runs), f"{runs}/model holds no trained model; name a completed run"),
        (lambda: load_discriminator(runs / "plain", sequence_length=2), "from 3 to 16,384, not 2"),
        (lambda: load_discriminator(runs / "plain", tmp_path / "other"), "was altered"),
    ):
        with pytest.raises(UserError, match=says) as caught:
            act()
        assert "\n" not in str(caught.value)


def test_another_tokenizer_is_refused(runs: Path, detector: Detector, tmp_path: Path) -> None:
    from fast_electra.text.train_tokenizer import train_tokenizer

    (tmp_path / "text.txt").write_text("some words of another text\n")
    train_tokenizer([tmp_path / "text.txt"], tmp_path / "other", 280)
    with pytest.raises(UserError, match="is not the tokenizer of"):
        load_discriminator(runs / "plain", tmp_path / "other")


def test_one_token_can_be_corrupted(detector: Detector, auxiliary: Temperature) -> None:
    assert detector.detect("") == [] and len(detector.detect("\n")) == 1
    assert len(detector.corrupt("\n", auxiliary, 1.0).tokens) == 1
    assert detector.corrupt("", auxiliary, 1.0) == ("", [], [], [])


def _printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["detect", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_the_command_marks_text(
    runs: Path, detector: Detector, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, text = runs / "plain", "Two lines\nof text, \x1b[31mé"
    none = f"0 of {len(detector.detect(text))} tokens look replaced (probability of at least 1)\n"
    assert _printed(capsys, run, text, "--threshold", 1) == f"Two lines\nof text, ␛[31mé\n{none}"
    marked = _printed(capsys, run, "--threshold", 0, text, "two")
    first = detector.detect(text)[0]
    assert marked.startswith(f"[{first.piece} {first.probability:.2f}]") and "[⏎ 0." in marked and "]\n[o 0." in marked
    assert marked.count("[é 0.") == 1 and "\n\n[" in marked  # two bytes, one character; two texts
    lines = _printed(capsys, run, text, "two", "--json").splitlines()
    assert [json.loads(line)["text"] for line in lines] == [text, "two"]
    assert [tuple(token.values()) for token in json.loads(lines[0])["tokens"]] == detector.detect(text)
    for variables, styled in (({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)):
        with monkeypatch.context() as patch:
            for name, value in ({"TERM": "xterm-256color", "COLORTERM": ""} | variables).items():
                patch.setenv(name, value)
            assert ("\x1b[" in _printed(capsys, run, text, "--threshold", 0)) == styled
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("from a pipe, é\n".encode())))
    assert _printed(capsys, run, "--threshold", 1).startswith("from a pipe, é\n0 of")


def test_the_command_corrupts_first(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "It was the best of times, it was the worst of times,\nit was the age of wisdom."
    options = [runs / "plain", "--auxiliary", runs / "auxiliary", "--temperature", 2, "--threshold", 0.25, text]
    value = json.loads(_printed(capsys, *options, "--json"))
    summary, tokens = value["summary"], value["tokens"]
    assert summary["replaced"] == sum(token["replaced"] for token in tokens) > 3
    original, corrupted = _printed(capsys, *options).split("\n\n")[:2]
    assert original.startswith("original, [replaced tokens]\n") and original.count("[") == summary["replaced"] + 1
    found, accused = corrupted.count("[") - 1, corrupted.count("<") - 1
    assert (found, accused) == (summary["found"], summary["accused"])
    assert found + corrupted.count("{") - 1 == summary["replaced"]
    assert _printed(capsys, *options).splitlines()[-1].startswith(f"{summary['replaced']} of {len(tokens)} tokens")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([""], "the text is empty"),
        ([" \n"], "the text is empty"),
        ([], "the text is empty"),
        (["a", "\udcff"], "text 2: character 1 of the text is a lone surrogate"),
        (["a" * (2**22 + 1)], "more than 4,194,304: give it in parts"),
        (["--threshold", "2", "a"], "--threshold must be a number from 0 to 1, not 2"),
        (["--threshold", "nan", "a"], "not nan"),
        (["--temperature", "2", "a"], "name its run with --auxiliary"),
        (["--tokenizer", "absent", "a"], "there is no folder absent"),
        (["--sequence-length", "-1", "a"], "not -1"),
        (["--auxiliary", "absent", "a"], "absent/model holds no trained model"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    arguments: list[str],
    says: str,
    runs: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    assert main(["detect", str(runs / "plain"), *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error and error.startswith("fast-electra: error: ") and error.count("\n") == 1


def test_words_after_a_flag_are_texts_of_detect_alone(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["detect", "run", "--nonsense", "a"], ["inspect", "a", "b"], ["doctor", "a"]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert "unrecognized arguments: " in capsys.readouterr().err


def test_what_is_piped_must_be_text(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for data, says in ((b"ab\xff", "not UTF-8 (byte 3)"), (b"ab\0", "character 3 of the text is a NUL")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert main(["detect", str(runs / "plain")]) == 2
        assert says in capsys.readouterr().err
