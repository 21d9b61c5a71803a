"""What several tests share: one thread, a small corpus, and the real launcher."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

# Before torch and tokenizers are imported, and inherited by every process that a test starts.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run in Triton's interpreter

from fast_electra.hosts import operators
from fast_electra.training import machine

ROOT = Path(__file__).parent.parent
operators.prepare_environment()
torch.set_num_threads(1)

pytest_plugins = ["drills", "ranks"]
Launch = Callable[..., "subprocess.CompletedProcess[str]"]


class Corpus(NamedTuple):
    """Folders of a tokenizer and of the shards that it made."""

    tokenizer: Path
    shards: Path
    vocabulary_size: int


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """60 documents of the sample corpus, cut to 8,000 characters each, with a tokenizer of 1,000 entries."""
    from fast_electra.text.build import build_shards
    from fast_electra.text.inputs import expand
    from fast_electra.text.readers import read_documents
    from fast_electra.text.train_tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("tiny_corpus")
    text = folder / "text.jsonl"
    every_tenth = islice(read_documents(expand(["sample"]), "text"), 0, 600, 10)
    text.write_text("".join(json.dumps({"text": document.text[:8000]}) + "\n" for document in every_tenth))
    train_tokenizer([text], folder / "tokenizer", vocabulary=1000)
    build_shards([text], folder / "tokenizer", folder / "shards", heldout=0.1)
    return Corpus(folder / "tokenizer", folder / "shards", 1000)


@pytest.fixture(scope="session")
def launch() -> Launch:
    """Runs a script under the real `deepspeed` launcher, as users do; see `_launch`."""
    return _launch


def _launch(
    script: str, arguments: Sequence[str] = (), ranks: int = 2, timeout: float = 240, check: bool = True
) -> "subprocess.CompletedProcess[str]":
    """`deepspeed --num_gpus RANKS --master_port FREE SCRIPT ARGUMENTS` in the repository's root.

    Args:
        script: relative to the root, such as "launch/pretrain.py", or absolute.
        timeout: seconds after which everything that was started is killed, and the test fails.
        check: fail the test if the exit code is not 0.

    Returns:
        Exit code, and stdout and stderr together as `stdout`.
    """
    launcher = Path(sys.executable).parent / "deepspeed"
    port = free_port()
    command = [str(launcher), "--num_gpus", str(ranks), "--master_port", str(port), script, *arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except BaseException as error:
        kill_group(process)
        output, _ = process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            pytest.fail(f"{' '.join(command)} took more than {timeout} s\n{output[-5000:]}")
        raise
    finally:
        if process.returncode != 0:
            kill_group(process)  # the launcher can leave a rank behind
        for buffer in machine.SHARED_MEMORY.glob(f"{machine.SHARED_BUFFER}_*_{port}_*"):  # 66 MiB each, of killed ranks
            buffer.unlink(missing_ok=True)
    if check and process.returncode != 0:
        pytest.fail(f"{' '.join(command)} exited with {process.returncode}\n{output[-5000:]}")
    return subprocess.CompletedProcess(command, process.returncode, output)


def kill_group(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])
