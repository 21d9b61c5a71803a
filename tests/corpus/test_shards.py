"""Shards hold every good document once, whole, in order, for any number of processes; any change to them is found."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fast_electra.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from fast_electra.corpus.shards import Shards
from fast_electra.settings import UserError
from fast_electra.text.build import build_shards
from fast_electra.text.documents import Document
from fast_electra.text.inputs import expand
from fast_electra.text.readers import read_documents
from fast_electra.text.train_tokenizer import train_tokenizer

BAD = ['{"text": "cut', '{"text": ""}', '{"body": "no text"}', '{"text": "nul \\u0000 \\ud800"}', '{"text": ""}']


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "tokenizer"
    train_tokenizer(["sample"], folder, 1000, max_train_bytes=2**20)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four hundred documents in two files, some twice, with bad ones between them."""
    texts = [item[0][:15_000] for item in read_documents(expand(["sample"]))][:400]
    lines = [json.dumps({"text": text}) for text in texts + texts[:20]]
    for position, line in enumerate(BAD):
        lines.insert(50 * position + 3, line)
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "a.jsonl").write_text("\n".join(lines[:200]))
    (folder / "b.jsonl").write_text("\n".join(lines[200:]))
    return folder


@pytest.fixture(scope="module")
def built(corpus: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "shards"
    build_shards([corpus], tokenizer, folder, heldout=0.1, shard_bytes=200_000)
    return folder


def texts_of(shards: Shards, tokenizer: SentencePieceTokenizer) -> list[str]:
    return [tokenizer.decode(shards.tokens(i, 0, int(n)).tolist()) for i, n in enumerate(shards.lengths)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_good_document_comes_back_once_whole_and_in_order(corpus: Path, built: Path, tokenizer: Path) -> None:
    good = [item.text for item in read_documents(expand([corpus])) if isinstance(item, Document)]
    train, heldout = (
        texts_of(Shards.open(built, split), SentencePieceTokenizer.load(tokenizer)) for split in ("train", "heldout")
    )
    assert len(train) + len(heldout) == len(good) == 420
    assert not set(train) & set(heldout)
    assert train == [text for text in good if text in set(train)]
    assert heldout == [text for text in good if text in set(heldout)]
    assert 15 < len(heldout) < 80


def test_tokens_are_read_by_range(built: Path, tokenizer: Path) -> None:
    shards = Shards.open(built)
    assert shards.lengths.dtype == np.int64
    assert len(shards.manifest.splits["train"]) > 5
    for document in (0, 7, len(shards.lengths) // 2, len(shards.lengths) - 1):
        length = int(shards.lengths[document])
        whole = shards.tokens(document, 0, length)
        assert whole.dtype == np.uint16
        assert len(whole) == length
        for start, stop in ((0, 1), (length // 3, length // 2), (length - 1, length), (5, 5)):
            assert np.array_equal(shards.tokens(document, start, stop), whole[start:stop])
    with pytest.raises(AssertionError):
        shards.tokens(0, 0, int(shards.lengths[0]) + 1)


def test_counts_and_quarantine_account_for_everything(built: Path, tokenizer: Path, corpus: Path) -> None:
    manifest = Shards.open(built).manifest
    assert manifest.rejected == {"NUL character": 1, "empty document": 2, "malformed JSON": 1, "no text field": 1}
    rows = [json.loads(line) for line in (built / "quarantine.jsonl").read_text().splitlines()]
    assert len(rows) == len(BAD)
    assert rows[0] == {"source": f"{corpus / 'a.jsonl'}:4", "reason": "malformed JSON", "excerpt": BAD[0]} | {
        "documents": 1,
        "bytes": len(BAD[0]),
        "hint": "",
    }
    assert manifest.documents == 420
    totals = [
        (Shards.open(built, split).lengths.sum(), len(Shards.open(built, split).lengths)) for split in manifest.splits
    ]
    assert manifest.tokens == sum(tokens for tokens, _ in totals)
    assert manifest.documents == sum(documents for _, documents in totals)
    assert manifest.tokenizer == Shards.open(built).tokenizer_hash == SentencePieceTokenizer.load(tokenizer).hash
    assert manifest.vocabulary_size == 1000


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_processes_changes_no_byte(
    corpus: Path, tokenizer: Path, built: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fast_electra.text.build._BATCH_CHARACTERS", 50_000)
    build_shards([corpus], tokenizer, tmp_path / "s", heldout=0.1, shard_bytes=200_000, workers=workers)
    assert contents(tmp_path / "s") == contents(built)
    assert Shards.open(tmp_path / "s").hash == Shards.open(built).hash


@pytest.mark.parametrize("heldout", [0.001, 0.5, 0.999])
@pytest.mark.parametrize("count", [2, 3])
def test_small_corpora_have_documents_on_both_sides(
    tokenizer: Path, tmp_path: Path, heldout: float, count: int
) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(["one"] * 2 + ["two", "three", "four"][: count - 1]))
    build_shards([tmp_path / "a.txt"], tokenizer, tmp_path / "s", heldout=heldout)
    train, heldout_texts = (
        texts_of(Shards.open(tmp_path / "s", s), SentencePieceTokenizer.load(tokenizer)) for s in ("train", "heldout")
    )
    assert train
    assert heldout_texts
    assert not set(train) & set(heldout_texts)
    assert len(train) + len(heldout_texts) == count + 1


def test_without_a_second_text_or_a_share_nothing_is_held_out(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\none")
    build_shards([tmp_path / "a.txt"], tokenizer, tmp_path / "s", heldout=0.01)
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    build_shards([tmp_path / "a.txt"], tokenizer, tmp_path / "t", heldout=0.0)
    for folder in (tmp_path / "s", tmp_path / "t"):
        assert len(Shards.open(folder).lengths) == 2
        with pytest.raises(UserError, match="holds no heldout documents"):
            Shards.open(folder, "heldout")


def test_any_change_to_a_file_is_found_and_named(built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    shutil.copytree(built, folder)
    names = [path.name for path in folder.iterdir() if path.suffix in (".bin", ".idx")]
    chosen = random.Random(1)
    for name in names:
        path = folder / name
        data = path.read_bytes()
        damages: list[bytes | None] = [None, b"", data[:-1], data + b"\0", data[: len(data) // 2]]
        for _ in range(3):
            flipped = bytearray(data)
            flipped[chosen.randrange(len(data))] ^= 1 << chosen.randrange(8)
            damages.append(bytes(flipped))
        for damage in damages:
            path.unlink() if damage is None else path.write_bytes(damage)
            with pytest.raises(UserError, match=name) as error:
                Shards.open(folder, "train")
            assert "fast-electra corpus" in str(error.value)
        path.write_bytes(data)
    assert Shards.open(folder).hash == Shards.open(built).hash


def test_without_verification_sizes_are_still_checked(built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    shutil.copytree(built, folder)
    data = bytearray((folder / "train-00001.bin").read_bytes())
    data[7] ^= 1
    (folder / "train-00001.bin").write_bytes(data)
    Shards.open(folder, verify=False)
    (folder / "train-00001.bin").write_bytes(data[:-2])
    with pytest.raises(UserError, match=r"train-00001\.bin"):
        Shards.open(folder, verify=False)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 2}', "\x00\x01"])
def test_a_bad_manifest_is_refused(built: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "s"
    shutil.copytree(built, folder)
    (folder / "manifest.json").write_text(damage)
    with pytest.raises(UserError, match=r"manifest\.json cannot be read"):
        Shards.open(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json is missing"):
        Shards.open(folder)


def test_a_manifest_with_other_counts_is_refused(built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    shutil.copytree(built, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["splits"]["train"][0]["tokens"] += 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest\.json cannot be read \(it was altered: its checksum differs\)"):
        Shards.open(folder)
    del manifest["checksum"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"train-00000\.idx"):
        Shards.open(folder)


def test_a_failure_leaves_nothing_behind(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xff\n\n\0")
    with pytest.raises(UserError, match=r"no usable document.*1 x NUL character, 1 x broken UTF-8"):
        build_shards([tmp_path / "a.txt"], tokenizer, tmp_path / "s")

    def interrupted(documents: int, size: int) -> None:
        if documents == 100:
            raise KeyboardInterrupt

    for workers in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            build_shards([corpus], tokenizer, tmp_path / "s", workers=workers, progress=interrupted)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("victims", [1, 2])
def test_a_killed_process_ends_the_build_even_in_the_middle_of_a_result(
    tokenizer: Path, tmp_path: Path, victims: int
) -> None:
    (tmp_path / "a.txt").write_text("a word and another\n\n" * 400_000)

    def kill(documents: int, size: int) -> None:
        if documents == 1:  # with luck, others are within a result of several megabytes
            for process in multiprocessing.active_children()[:victims]:
                process.kill()

    with pytest.raises(UserError, match=r"a tokenising process was killed.*fewer --workers"):
        build_shards([tmp_path / "a.txt"], tokenizer, tmp_path / "s", workers=2, progress=kill)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert not multiprocessing.active_children()


def test_wrong_shares_and_counts_are_refused(tokenizer: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"heldout": 1.0}, "--heldout"),
        ({"heldout": -0.1}, "--heldout"),
        ({"workers": 0}, "--workers"),
    ):
        with pytest.raises(UserError, match=message):
            build_shards(["sample"], tokenizer, tmp_path / "s", **options)


def test_existing_shards_survive_a_failed_overwrite(built: Path, tokenizer: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "s")
    with pytest.raises(UserError, match="--overwrite"):
        build_shards(["sample"], tokenizer, tmp_path / "s")
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match="no usable document"):
        build_shards([tmp_path / "a.txt"], tokenizer, tmp_path / "s", overwrite=True)
    assert contents(tmp_path / "s") == contents(built)


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the worker processes in /proc")
def test_a_stopped_build_leaves_no_process_and_no_shards(tokenizer: Path, tmp_path: Path) -> None:
    """Ctrl-C (which reaches the whole group), SIGTERM and an outright kill, each in the middle of a build."""
    (tmp_path / "in").mkdir()
    for copy in range(20):
        shutil.copy(expand(["sample"])[0], tmp_path / "in" / f"{copy}.jsonl.xz")
    codes = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
    command = [sys.executable, "-m", "fast_electra.cli", "corpus", "--workers", "2", "--input", str(tmp_path / "in")]
    command += ["--tokenizer", str(tokenizer), "--output"]
    builds = {
        number: subprocess.Popen(
            [*command, tmp_path / number.name],
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job of a shell ignores it
        )
        for number in codes
    }
    partials = {number: tmp_path / f".{number.name}.fast-electra-partial" for number in codes}
    assert until(lambda: all(any(partial.glob("train-*.bin")) for partial in partials.values()))
    workers = [worker for build in builds.values() for worker in children_of(build.pid)]
    assert len(workers) >= 6
    os.killpg(builds[signal.SIGINT].pid, signal.SIGINT)
    builds[signal.SIGTERM].terminate()
    builds[signal.SIGKILL].kill()
    assert {number: build.wait(timeout=30) for number, build in builds.items()} == codes
    assert until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    assert not [number for number in codes if (tmp_path / number.name).exists()]
    assert [number for number, partial in partials.items() if partial.exists()] == [signal.SIGKILL]


def until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 90
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def children_of(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
