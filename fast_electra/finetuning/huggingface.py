"""Encoders of Hugging Face for sequence classification, fed with unpadded batches. No pickle, no remote code."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fast_electra.batch import Layout
from fast_electra.files import file_hash
from fast_electra.finetuning.config import FineTuningSettings
from fast_electra.finetuning.examples import Encode
from fast_electra.finetuning.tasks import Task
from fast_electra.huggingface.folder import (
    SAFE,
    check_encoder,
    check_finite,
    check_safe,
    new_model,
    quiet_transformers,
    set_dropout,
)
from fast_electra.huggingface.padding import pad
from fast_electra.huggingface.probe import too_long
from fast_electra.huggingface.saved import check_saved, saved_folder
from fast_electra.objectives.objective import Export
from fast_electra.run_settings import SECTION
from fast_electra.settings import UserError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROWS = 10_000  # encoded at once: transformers keeps far more of a row than its ids


class PaddedClassifier(nn.Module):
    """A sequence classifier of transformers behind our call: it pads the batch privately."""

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
        """Wrap a model; the second text of a pair is marked where model and tokenizer know such marks."""
        super().__init__()
        self.model = model
        self.pad_id: int = tokenizer.pad_token_id or 0
        segments = "token_type_ids" in tokenizer.model_input_names and getattr(model.config, "type_vocab_size", 0) > 1
        self.separator = tokenizer.sep_token_id if segments else None

    def forward(self, tokens_T: Tensor, layout: Layout) -> Tensor:
        """Return logits or values, [B, C]."""
        ids_BL, mask_BL, _ = pad(tokens_T, layout, self.pad_id)
        more = {}
        if self.separator is not None:
            ended_BL = (ids_BL == self.separator).long()
            more["token_type_ids"] = (ended_BL.cumsum(1) - ended_BL).clamp(max=1) * mask_BL
        outputs: Tensor = self.model(input_ids=ids_BL, attention_mask=mask_BL, **more).logits
        return outputs


def open_classifier(
    folder: Path, settings: FineTuningSettings, task: Task
) -> tuple[nn.Module, Encode, str, str, Callable[[dict[str, Tensor]], list[Export]]]:
    """Open an encoder with its tokenizer, and a head for a task: see `pretrained.Pretrained` for what is returned.

    Raises:
        UserError: the folder is damaged, not safe, or lacks weights or a tokenizer that fits.
    """
    transformers = quiet_transformers(folder)
    check_safe(folder, weights=settings.initialization == "pretrained")
    torch.manual_seed(settings.seed)  # of the head
    where = f"{folder} cannot be loaded by transformers {transformers.__version__}"
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **SAFE)
        _configure(config, settings, task)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **SAFE)
        auto, info = transformers.AutoModelForSequenceClassification, None
        if settings.initialization == "random":
            model = auto.from_config(config, trust_remote_code=False)
        else:
            options = {"config": config, "use_safetensors": True, "dtype": torch.float32, **SAFE}
            model, info = auto.from_pretrained(
                folder, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
        model = model.float()
    except Exception as error:  # whatever a damaged file makes of transformers' code
        raise UserError(f"{where} ({type(error).__name__}: {first_line(error)[:200]})") from None
    if info is not None:
        check_encoder(folder, model, info)
        check_finite(folder, model)
    _check_tokenizer(folder, model, tokenizer)
    wrapped = PaddedClassifier(model, tokenizer)
    encode = _encoder(tokenizer)
    _probe(folder, wrapped, encode, settings.sequence_length)

    def exports(weights: dict[str, Tensor]) -> list[Export]:
        def write(place: Path, **facts: Any) -> None:
            inner = {name.removeprefix("model."): weight for name, weight in weights.items()}
            fresh = new_model("AutoModelForSequenceClassification", place, config)
            missing = set(dict(fresh.named_parameters())) - set(inner)
            fresh.load_state_dict(inner, strict=False)
            assert not missing, missing
            with saved_folder(place, facts | {"task": task.name}) as partial:
                fresh.save_pretrained(partial)
                tokenizer.save_pretrained(partial)

        return [Export("model", write, check_saved)]

    return wrapped, encode, f"{config.model_type} of Hugging Face", "", exports


def hashes(folder: Path) -> list[str]:
    """Return the hash of each file of weights."""
    return [file_hash(file) for file in sorted(folder.glob("*.safetensors"))]


def _configure(config: Any, settings: FineTuningSettings, task: Task) -> None:
    """Give a config of transformers the task's labels and the dropout."""
    config.num_labels = task.outputs
    labels = task.labels or ("LABEL_0",)
    config.id2label, config.label2id = dict(enumerate(labels)), {label: i for i, label in enumerate(labels)}
    config.problem_type = "regression" if task.regression else "single_label_classification"
    set_dropout(config, settings.dropout)


def _check_tokenizer(folder: Path, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    weight: Any = model.get_input_embeddings().weight
    rows = weight.shape[0]
    if not any((folder / name).exists() for name in tokenizer.vocab_files_names.values()):
        files = " or ".join(sorted(set(tokenizer.vocab_files_names.values())))
        raise UserError(f"{folder} holds no tokenizer ({files}): put the files of the model's own tokenizer there")
    if len(tokenizer) > rows:
        raise UserError(
            f"{folder}: its tokenizer has {len(tokenizer):,} tokens and its model {rows:,}: put the files of the "
            "model's own tokenizer there"
        )
    if not {tokenizer.cls_token_id, tokenizer.bos_token_id} & set(tokenizer("a")["input_ids"]):
        raise UserError(f"{folder}: its tokenizer adds no [CLS] or <s>, from which a sequence is classified")


@torch.no_grad()
def _probe(folder: Path, model: PaddedClassifier, encode: Encode, length: int) -> None:
    """Run a row of L tokens beside a short one on the CPU: on a GPU a missing position would kill the process.

    Raises:
        UserError: the model has fewer positions, cannot run a padded batch, or reads the padding.
    """
    (long, _), (short, _) = encode([("a " * length,), ("a",)], length)
    long = [*long[:1], *long[1:2] * (length - len(long)), *long[1:]]
    model.eval()
    try:
        beside_C = model(torch.tensor([*long, *short]), Layout.of(torch.tensor([length, len(short)])))[1]
        alone_C = model(torch.tensor(short), Layout.of(torch.tensor([len(short)])))[0]
    except (IndexError, RuntimeError):
        raise too_long(folder, model.model, length, f"{SECTION}.sequence_length") from None
    except Exception as error:  # whatever else a model asks of its inputs
        raise UserError(f"{folder}: the model cannot classify a padded batch ({first_line(error)[:200]})") from None
    if (beside_C - alone_C).abs().max() > 0.01 * alone_C.abs().max() + 1e-5:
        raise UserError(f"{folder}: the model reads the padding after a row, so its classes would depend on the batch")
    model.train()


def _encoder(tokenizer: "PreTrainedTokenizerBase") -> Encode:
    def encode(rows: list[tuple[str, ...]], length: int) -> list[tuple[list[int], bool]]:
        framed = []
        for start in range(0, len(rows), ROWS):
            clean = [
                tuple(text.encode("utf-8", errors="replace").decode() for text in row)
                for row in rows[start : start + ROWS]
            ]
            columns = [list(column) for column in zip(*clean, strict=True)]
            whole = tokenizer(*columns, truncation=False, padding=False, verbose=False)["input_ids"]
            for row, ids in zip(clean, whole, strict=True):
                if cut := len(ids) > length:
                    ids = tokenizer(*row, truncation=True, max_length=length, padding=False)["input_ids"]
                framed.append((ids, cut))
        return framed

    return encode
