"""Paths as a user writes them, in a config, by --set and on the command line; and files of odd encodings."""

import argparse
import json
import os
from pathlib import Path

import pytest

from fast_electra import cli, config
from fast_electra.cli import main
from fast_electra.cost.estimate import check_machine
from fast_electra.deepspeed_config import Machine
from fast_electra.jobs import launcher, measure, preprocess
from fast_electra.settings import UserError, file_argument, path_argument

TINY = Path(__file__).parent.parent / "ds_configs/tiny.json"
PATHS = ("run", "corpus.shards", "corpus.tokenizer", "auxiliary.run", "replacement.store")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, which is also $DATA."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("key", PATHS)
@pytest.mark.parametrize("text", ["~/x", "$HOME/x", "${DATA}/x"])
def test_a_path_means_what_a_shell_would_make_of_it(home: Path, key: str, text: str) -> None:
    loaded = config.load(TINY, [f"fast_electra.{key}={text}"]).to_json()[config.SECTION]
    for name in key.split("."):
        loaded = loaded[name]
    assert loaded == f"{home}/x"


@pytest.mark.parametrize("text", ["runs/a=b", "./~x", "/a/b c/ü", "a$", "..", "runs/x~"])
def test_other_paths_stay_as_they_are(text: str) -> None:
    assert config.load(TINY, [f"fast_electra.run={text}"]).run.run == text
    assert path_argument(text) == Path(text)


def test_a_folder_or_a_device_is_no_file_to_write(tmp_path: Path) -> None:
    for path in (tmp_path / "new.json", tmp_path / ("x" * 300), tmp_path / "absent" / "new.json"):
        assert file_argument(str(path)) == path
    with pytest.raises(argparse.ArgumentTypeError, match=f"^{tmp_path} is a folder: name a file in it$"):
        file_argument(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    for text in ("/dev/full", "/dev/null", str(tmp_path / "pipe")):
        with pytest.raises(argparse.ArgumentTypeError, match=f"^{text} is a device or a pipe, .*: name a file$"):
            file_argument(text)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert file_argument(str(tmp_path / "link")) == tmp_path / "file"
    for flag in ("--json", "--plot", "--save-reference"):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["calibrate", "--config", str(TINY), flag, str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        cli.main(["report", str(tmp_path), "--output", str(tmp_path)])


@pytest.mark.parametrize("key", [f"fast_electra.{key}" for key in PATHS] + ["csv_monitor.output_path"])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("runs/x ", "without spaces or line ends around it"),
        (" runs/x", "without spaces or line ends around it"),
        ("runs/x\n", "without spaces or line ends around it"),
        ("file:///runs/x", "without file:// or another scheme"),
        ("s3://bucket/x", "without file:// or another scheme"),
        ("~nobody-of-that-name/x", "whose ~USER and $NAME exist here"),
        ("$NOTHING_OF_THAT_NAME/x", "whose ~USER and $NAME exist here"),
    ],
)
def test_a_path_that_would_mean_something_else_is_refused(key: str, text: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        config.load(TINY, [f"{key}={json.dumps(text)}"])
    assert f"{key} must be a path" in str(caught.value)
    assert says in str(caught.value) and str(caught.value).endswith(repr(text))


def test_files_that_deepspeed_writes_are_expanded_too(home: Path) -> None:
    keys = ("csv_monitor.output_path", "tensorboard.output_path", "flops_profiler.output_file")
    loaded = config.load(TINY, [f"{key}=~/x" for key in keys]).deepspeed
    for key in keys:
        section, name = key.split(".")
        assert loaded[section][name] == f"{home}/x"
    assert config.load(TINY, ['csv_monitor.output_path=""']).deepspeed["csv_monitor"]["output_path"] == ""


def test_the_command_line_knows_the_home_folder(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in `--config=~/tiny.json`, which no shell expands."""
    (home / "tiny.json").write_text(TINY.read_text())
    assert main(["estimate", "--config=~/tiny.json"]) == 0
    assert main(["estimate", "--config=$DATA/tiny.json"]) == 0
    assert launcher.parser("").parse_args(["--deepspeed_config=~/tiny.json"]).deepspeed_config == home / "tiny.json"
    assert main(["report", "~/no-run"]) == 2
    assert f"{home}/no-run" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["estimate", "--config=file:///tiny.json"])
    assert "must be a path on this machine, without file://" in capsys.readouterr().err
    assert not list(home.glob("~*"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_config_of_another_editor_is_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(TINY.read_text().replace("runs/quickstart/discriminator", "runs/ü"), encoding=encoding)
    assert config.load(path).run.run == "runs/ü"


@pytest.mark.parametrize("content", [b"\xff\xfe\xfa{}", b"[" * 100_000, b""])
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        config.load(path)
    assert str(caught.value).startswith(f"{path} is not valid JSON") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("fast_electra.model.hidden_size=40000", "Adam's two moments"),
        ("fast_electra.model.vocabulary_size=16777216", "Adam's two moments"),
        ("fast_electra.model.layers=1000000", "from 1 to 1,000"),
        ("fast_electra.model.hidden_size=40000000", "from 1 to 65,536"),
        ("train_batch_size=1048576", "activations inside the layers"),
        ("train_batch_size=10000000", "from 1 to 1,048,576"),
    ],
)
def test_a_run_that_cannot_fit_is_refused_before_it_is_built(override: str, part: str) -> None:
    check_machine(config.load(TINY), 1e9)
    with pytest.raises(UserError) as caught:
        check_machine(config.load(TINY, [override]), 16e9)
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_what_needs_a_gpu_is_refused_before_the_start() -> None:
    for override, says in (
        ("fast_electra.model.attention=triton", "fast_electra.model.attention: triton needs an Ampere GPU"),
        ("fast_electra.auxiliary.dtype=fp16", "fast_electra.auxiliary.dtype: fp16 needs a GPU"),
    ):
        with pytest.raises(UserError, match=says):
            check_machine(config.load(TINY, [override]), 16e9)
    overrides = ["fast_electra.model.attention=triton", "fast_electra.model.heads=2", "bf16.enabled=auto"]
    check_machine(config.load(TINY, overrides, Machine(1, "bf16", on_gpu=True)), 16e9)
    for machine in (Machine(1, "fp16", on_gpu=True, runs_triton=False), Machine(1, "fp32", on_gpu=True), Machine()):
        with pytest.raises(UserError, match="triton needs an Ampere GPU"):  # too old, in fp32, a CPU
            check_machine(config.load(TINY, [*overrides, "fp16.enabled=auto"], machine), 16e9)


def test_numbers_of_the_launch_scripts_have_a_range() -> None:
    loaded = config.load(TINY)
    for options in (measure.Options(0, 3, 6), measure.Options(10, -1, 6), measure.Options(10, 3, 10**12)):
        with pytest.raises(UserError, match="or more, and at most 1,000,000"):
            measure.main(loaded, "tiny.json", [], options)
    for part in (-1, 10**12):
        with pytest.raises(UserError, match=f"at most 1,048,576 and at least 1, not {part}"):
            preprocess.destination(loaded, Path("store"), part)


def test_what_could_fit_is_never_refused() -> None:
    """Short texts need little of what a batch could need; buckets on a CPU are memory only when they are filled."""
    check_machine(config.load(TINY, ["fast_electra.corpus.sequence_length=32768"]), 16e9)
    buckets = ["zero_optimization.reduce_bucket_size=5000000000"]
    check_machine(config.load(TINY, buckets), 16e9)
    with pytest.raises(UserError, match="most is reduction's buckets"):
        check_machine(config.load(TINY, buckets, Machine(on_gpu=True)), 16e9)
