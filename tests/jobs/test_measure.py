"""Measured costs: what a hand count says of tensors' memory, and Table 7 by the real launcher with two processes."""

import json
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from conftest import Corpus, Launch
from torch import Tensor
from torch.distributed import HashStore, ProcessGroupGloo

from fast_electra import config
from fast_electra.cost.estimate import GPUS
from fast_electra.cost.measure import known_gpu, ratios, tensor_memory
from fast_electra.deepspeed_config import Machine
from fast_electra.jobs import measure
from fast_electra.jobs.measure import Options
from fast_electra.settings import UserError

CPU = torch.device("cpu")
N, FLOAT = 100_000, 4


def test_memory_of_known_tensors_is_exact() -> None:
    def work(held: Tensor) -> None:
        first = held.exp()  # 2 N
        second = first.exp()  # 3 N
        del first
        third = second.exp()  # 3 N again
        del second
        third.exp_()

    before = torch.zeros(N)  # there before: no part of it
    memory = tensor_memory(CPU, lambda: torch.zeros(N), work)
    assert before.numel() == N
    assert memory.held == N * FLOAT
    assert memory.peak == 3 * N * FLOAT


def test_memory_of_the_backward_pass_counts() -> None:
    def work(weight: Tensor) -> None:
        loss = weight.exp().sum()  # exp's output stays for the backward pass
        loss.backward()  # and the gradient comes on top

    memory = tensor_memory(CPU, lambda: torch.zeros(N, requires_grad=True), work)
    assert memory.held == N * FLOAT
    assert memory.peak == pytest.approx(3 * N * FLOAT, abs=100)


def test_freeing_what_was_there_before_hides_nothing() -> None:
    before = [torch.zeros(N)]

    def work(held: Tensor) -> None:
        before.clear()
        torch.zeros(N)

    assert tensor_memory(CPU, lambda: torch.zeros(N), work).peak == 2 * N * FLOAT


def test_what_a_thread_of_gloo_releases_is_not_held() -> None:
    """The profiler does not see such a release, so it counted parameters that DeepSpeed had replaced, at random."""
    gloo = ProcessGroupGloo(HashStore(), 0, 1, timedelta(minutes=1))

    def prepare() -> Tensor:
        replaced = [torch.zeros(N)]
        gloo.allreduce(replaced).wait()
        thread = Thread(target=replaced.clear)  # as gloo's own does, if it is the last to hold the tensor
        thread.start()
        thread.join()
        return torch.zeros(N)

    memory = tensor_memory(CPU, prepare, torch.exp)
    assert memory.held == N * FLOAT
    assert memory.peak == 2 * N * FLOAT


def test_what_outlives_the_work_is_counted() -> None:
    kept: list[Tensor] = []
    memory = tensor_memory(CPU, lambda: kept.append(torch.zeros(N)), lambda _: kept.append(torch.zeros(N)))
    assert (memory.held, memory.peak) == (N * FLOAT, 2 * N * FLOAT)


def test_ratios_compare_within_a_round() -> None:
    quiet, busy = [1.0, 2.0, 9.0], [10.0, 20.0, 90.0]
    assert ratios([quiet, busy], [[4.0], [40.0]]) == [0.5, 0.5]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("Tesla V100-SXM2-32GB", "v100"),
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
        ("NVIDIA GeForce RTX 3090 Ti", None),  # each of these has another peak
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA GH200 480GB", None),
    ],
)
def test_a_gpu_is_known_by_its_name_alone(name: str, key: str | None) -> None:
    assert known_gpu(name) == (GPUS[key] if key else None)


@pytest.mark.parametrize(
    ("file", "overrides", "options", "message"),
    [
        ("tiny_auxiliary", [], Options(1, 1, 1), "name a config of objective rtd"),
        ("tiny", ["fast_electra.replacement.distribution=uniform"], Options(1, 1, 1), "uniform needs no auxiliary"),
        ("tiny", [], Options(0, 1, 1), "--updates 0: give 1 or more"),
    ],
)
def test_what_cannot_be_measured_is_refused(file: str, overrides: list[str], options: Options, message: str) -> None:
    path = f"ds_configs/{file}.json"
    loaded = config.load(path, overrides, Machine())
    with pytest.raises(UserError, match=message):
        measure.main(loaded, path, overrides, options)


@pytest.fixture(scope="module")
def measured(tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory, launch: Launch) -> tuple[str, Path]:
    """What `launch/measure.py` printed, and the folder with its files."""
    folder = tmp_path_factory.mktemp("measured")
    overrides = {
        "fast_electra.run": str(folder / "runs" / "main"),
        "fast_electra.auxiliary.run": str(folder / "runs" / "auxiliary"),  # which is not there
        "fast_electra.corpus.shards": str(tiny_corpus.shards),
        "fast_electra.corpus.tokenizer": str(tiny_corpus.tokenizer),
        "fast_electra.model.vocabulary_size": tiny_corpus.vocabulary_size,
        "fast_electra.model.layers": 2,
        "zero_optimization.reduce_bucket_size": 200_000,
        "train_batch_size": 32,
    }
    arguments = [part for key, value in overrides.items() for part in ("--set", f"{key}={value}")]
    arguments += ["--updates", "8", "--warmup", "1", "--rounds", "2", "--flops"]
    arguments += ["--json", str(folder / "figures.json"), "--trace", str(folder / "traces")]
    output = launch("launch/measure.py", ["--deepspeed_config", "ds_configs/tiny.json", *arguments], ranks=2).stdout
    return output, folder


@pytest.fixture(scope="module")
def figures(measured: tuple[str, Path]) -> dict[str, Any]:
    _, folder = measured
    found: dict[str, Any] = json.loads((folder / "figures.json").read_text())
    return found


def test_joint_training_holds_most(figures: dict[str, Any]) -> None:
    methods = figures["methods"]
    peaks = {name: of_method["peak_bytes"] for name, of_method in methods.items()}
    assert peaks["joint"] > 1.1 * max(peaks["online"], peaks["offline"])
    for of_method in methods.values():
        assert of_method["peak_bytes"] == pytest.approx(of_method["predicted"]["peak_bytes"], rel=0.1)
        assert len(of_method["peak_bytes_of_ranks"]) == 2


def test_each_device_starts_with_whole_weights_and_half_of_their_copy(figures: dict[str, Any]) -> None:
    """ZeRO-2 on two ranks. Each encoder adds its table of relative positions."""
    for name, of_method in figures["methods"].items():
        terms = of_method["predicted"]["bytes"]
        states = terms["weights"] + terms["fp32 copy of the weights, shared out"] + terms.get("frozen auxiliary", 0)
        assert 0 <= of_method["held_bytes"] - states < 150_000 * (2 if name == "joint" else 1)


def test_offline_training_has_no_auxiliary_in_memory(figures: dict[str, Any]) -> None:
    online, offline = figures["methods"]["online"], figures["methods"]["offline"]
    auxiliary = online["predicted"]["bytes"]["frozen auxiliary"]
    assert online["held_bytes"] - offline["held_bytes"] == pytest.approx(auxiliary, rel=0.01)


def test_offline_training_is_faster_than_joint(figures: dict[str, Any]) -> None:
    """By the CPU's own work. Other processes can only add to it, so the least of all updates is compared."""
    methods = figures["methods"]
    least = {name: min(map(min, of_method["cpu_seconds"])) for name, of_method in methods.items()}
    assert least["offline"] < 0.95 * least["joint"]  # 0.7 to 0.85 on two cores
    assert methods["offline"]["seconds_ratio_predicted"] < methods["online"]["seconds_ratio_predicted"] < 1.0


def test_every_update_is_kept(figures: dict[str, Any]) -> None:
    assert list(figures["methods"]) == ["joint", "online", "offline"]
    for of_method in figures["methods"].values():
        turns = of_method["seconds"]
        assert [len(turn) for turn in turns] == [8, 8] == [len(turn) for turn in of_method["cpu_seconds"]]
        assert min(min(turn) for turn in turns) > 0 and of_method["skipped_updates"] == 0
        tokens = of_method["tokens_per_second"] * of_method["seconds_per_update"]["median"]
        assert tokens == pytest.approx(32 * figures["batch"]["mean_length"])  # predictions are of these very batches
        assert of_method["mfu"] is None and of_method["flops_per_second_and_process"] > 0
    assert figures["machine"]["processes"] == 2 and figures["machine"]["device"] == "cpu"
    assert {"python", "torch", "deepspeed", "fast_electra"} == set(figures["machine"]["versions"])
    assert "untrained" in figures["auxiliary"]


def test_deepspeed_counts_the_same_flops(figures: dict[str, Any]) -> None:
    """Its profiler adds element-wise work, and leaves out the vocabulary head, which the sampler computes."""
    main = figures["deepspeed_flops"]["main model"]
    assert main["deepspeed"] == pytest.approx(main["predicted"], rel=0.03)
    auxiliary = figures["deepspeed_flops"]["auxiliary"]
    assert 0.3 * auxiliary["predicted"] < auxiliary["deepspeed"] < auxiliary["predicted"]


def test_table_and_traces_are_there(measured: tuple[str, Path]) -> None:
    output, folder = measured
    assert "untrained, because" in output and "DeepSpeed's profiler" in output and "middle half" in output
    table = [line.split() for line in output.splitlines() if line.startswith(("joint ", "online ", "offline "))]
    assert [row[0] for row in table] == ["joint", "online", "offline"] * 2
    assert all(len(row) == 8 for row in table[:3]) and all(len(row) == 6 for row in table[3:])
    for method in ("joint", "online", "offline"):
        trace = json.loads((folder / "traces" / f"{method}.json").read_text())
        names = {event["name"] for event in trace["traceEvents"]}
        assert {"update 2", "update 3", "aten::mm"} <= names and "update 1" not in names
    assert not list((folder / "runs").iterdir()), "what was written for the occasion is still there"
