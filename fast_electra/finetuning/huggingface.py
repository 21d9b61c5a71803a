"""Encoders of Hugging Face for sequence classification, fed with unpadded batches. No pickle, no remote code."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fast_electra.batch import Layout
from fast_electra.files import atomic_folder, file_hash, grant, read_json, write_sealed
from fast_electra.finetuning.config import FineTuningSettings
from fast_electra.finetuning.examples import Encode
from fast_electra.finetuning.tasks import Task
from fast_electra.objectives.objective import Export
from fast_electra.run_settings import SECTION
from fast_electra.settings import UserError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FACTS, WEIGHTS = "fast_electra.json", "model.safetensors"
DROPOUTS = (  # names that configs of transformers have for a rate
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "hidden_dropout", "attention_dropout", "dropout"),
    *("embedding_dropout", "mlp_dropout", "classifier_dropout", "classifier_dropout_prob"),
)
ROWS = 10_000  # encoded at once: transformers keeps far more of a row than its ids
SAFE: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}


class PaddedClassifier(nn.Module):
    """A sequence classifier of transformers behind our call: it pads the batch privately."""

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
        """Wrap a model; the second text of a pair is marked where model and tokenizer know such marks."""
        super().__init__()
        self.model = model
        self.pad = tokenizer.pad_token_id or 0
        segments = "token_type_ids" in tokenizer.model_input_names and getattr(model.config, "type_vocab_size", 0) > 1
        self.separator = tokenizer.sep_token_id if segments else None

    def forward(self, tokens_T: Tensor, layout: Layout) -> Tensor:
        """Return logits or values, [B, C]."""
        places = (layout.sequence_T, layout.position_T)
        ids_BL = tokens_T.new_full((len(layout.lengths_B), layout.longest), self.pad)
        ids_BL[places] = tokens_T
        mask_BL = torch.zeros_like(ids_BL)
        mask_BL[places] = 1
        more = {}
        if self.separator is not None:
            ended_BL = (ids_BL == self.separator).long()
            more["token_type_ids"] = (ended_BL.cumsum(1) - ended_BL).clamp(max=1) * mask_BL
        outputs: Tensor = self.model(input_ids=ids_BL, attention_mask=mask_BL, **more).logits
        return outputs


def holds_model(folder: Path) -> bool:
    """Return whether a folder's config.json is one of Hugging Face."""
    try:
        return "model_type" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def open_classifier(
    folder: Path, settings: FineTuningSettings, task: Task
) -> tuple[nn.Module, Encode, str, str, Callable[[dict[str, Tensor]], list[Export]]]:
    """Open an encoder with its tokenizer, and a head for a task: see `pretrained.Pretrained` for what is returned.

    Raises:
        UserError: the folder is damaged, not safe, or lacks weights or a tokenizer that fits.
    """
    try:
        import transformers
    except ImportError:
        raise UserError(f"{folder} needs the package transformers: pip install 'fast_electra[hf]'") from None
    _refuse(folder, settings)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
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
        _check_weights(folder, model, info)
    _check_tokenizer(folder, model, tokenizer)
    wrapped = PaddedClassifier(model, tokenizer)
    encode = _encoder(tokenizer)
    _probe(folder, wrapped, encode, settings.sequence_length)

    def exports(weights: dict[str, Tensor]) -> list[Export]:
        def write(place: Path, **facts: Any) -> None:
            inner = {name.removeprefix("model."): weight for name, weight in weights.items()}
            fresh = auto.from_config(config, trust_remote_code=False)
            missing = set(dict(fresh.named_parameters())) - set(inner)
            fresh.load_state_dict(inner, strict=False)
            assert not missing, missing
            with atomic_folder(place, FACTS, overwrite=True) as partial:
                fresh.float().save_pretrained(partial)
                tokenizer.save_pretrained(partial)
                for file in partial.iterdir():
                    grant(file)
                write_sealed(partial / FACTS, facts | {"task": task.name, "weights": file_hash(partial / WEIGHTS)})

        return [Export("model", write, _check)]

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
    for name in DROPOUTS:
        if isinstance(getattr(config, name, None), float):
            setattr(config, name, settings.dropout)


def _refuse(folder: Path, settings: FineTuningSettings) -> None:
    """Refuse what is not whole weights in safetensors."""
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{folder} holds an adapter and no whole model: merge it into its model first")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("quantization_config"):
        raise UserError(f"{folder} holds a quantized model, which cannot be trained: name the original one")
    if settings.initialization == "pretrained" and not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        which = f"only {pickles[0]}, a pickle, which is never loaded" if pickles else "no weights"
        remedy = "save the model with transformers' save_pretrained, which writes safetensors"
        raise UserError(f"{folder} holds {which}; it needs {WEIGHTS}: {remedy}")


def _check_weights(folder: Path, model: "PreTrainedModel", info: dict[str, Any]) -> None:
    """Refuse an encoder whose file lacks weights. A new head lacks them rightly."""
    inside = model.base_model_prefix + "."

    def of_encoder(names: Any) -> list[str]:
        keys = [name if isinstance(name, str) else name[0] for name in names]
        return sorted(name for name in keys if name.startswith(inside) and ".pooler." not in name)

    for what, names in (("lacks weights of", info["missing_keys"]), ("has other sizes of", info["mismatched_keys"])):
        if found := of_encoder(names):
            raise UserError(f"{folder} {what} its encoder ({len(found)}, e.g. {found[0]}): restore its files")
    bad = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    if bad:
        raise UserError(f"weights in {folder} are not finite ({bad[0]}): restore its files")


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
        most = getattr(model.model.config, "max_position_embeddings", "fewer")
        raise UserError(
            f"{folder}: the model has {most} positions, not enough for sequences of {length} tokens: use "
            f"--set {SECTION}.sequence_length=N"
        ) from None
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


def _check(folder: Path, remedy: str) -> None:
    """Raise a UserError if a folder that was written here is not whole."""
    try:
        if read_json(folder / FACTS)["weights"] == file_hash(folder / WEIGHTS):
            return
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{folder} holds no whole model; {remedy}")
