"""A masked language model of transformers as the frozen auxiliary (section 2: "an existing language model")."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fast_electra.batch import Layout
from fast_electra.huggingface import deberta_v3
from fast_electra.huggingface.families import FAMILIES, Vocabulary, generic
from fast_electra.huggingface.folder import (
    check_padding,
    check_safe,
    load,
    open_config,
    own_tokenizer,
    quiet_transformers,
)
from fast_electra.huggingface.padding import pad
from fast_electra.huggingface.probe import KEY, differ, probe_tokens, too_long
from fast_electra.settings import UserError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NEVER = -1e4  # bias of a token that must not be drawn. It is finite in fp16, and e^(NEVER / T) is 0 in fp32 for T < 90


class HuggingFaceMaskedLM(nn.Module):
    """Called as our `MaskedLanguageModel` is. It pads privately, and its head reads masked positions only."""

    def __init__(self, model: "PreTrainedModel", parts: Vocabulary, size: int, never_drawn: Iterable[int]) -> None:
        """Wrap a model that was taken apart.

        Args:
            model: of transformers.
            parts: of it.
            size: V, the entries of the tokenizer. The model may have more rows.
            never_drawn: tokens that are never drawn.
        """
        super().__init__()
        self.model, self._parts, self._size = model, parts, size
        self.pad_id: int = getattr(model.config, "pad_token_id", None) or 0
        bias_V = torch.zeros(size) if parts.bias is None else parts.bias.detach()[:size].clone()
        bias_V[list(never_drawn)] = NEVER
        self.bias = nn.Parameter(bias_V)

    def forward(
        self, tokens_T: Tensor, layout: Layout, positions_M: Tensor, hidden_only: bool = False, drop: Any = None
    ) -> Tensor:
        """Return logits at the masked positions, [M, V]; if `hidden_only`, what the head multiplies, [M, E]."""
        assert drop is None, "only our own encoder drops by key"
        padded = pad(tokens_T, layout, self.pad_id)
        hidden_ME = self._parts.hidden(padded.ids_BL, padded.mask_BL, padded.numbers_T.index_select(0, positions_M))
        return hidden_ME if hidden_only else F.linear(hidden_ME, *self.head)

    def hidden(self, tokens_T: Tensor, layout: Layout, positions_M: Tensor, drop: Any = None) -> Tensor:
        """Return what the vocabulary head multiplies, [M, E]; see `forward`."""
        hidden_ME: Tensor = self(tokens_T, layout, positions_M, hidden_only=True, drop=drop)
        return hidden_ME

    @property
    def head(self) -> tuple[Tensor, Tensor]:
        """Weight [V, E] and bias [V] of the vocabulary head."""
        return self._parts.weight()[: self._size], self.bias


def open_masked_lm(
    folder: Path, size: int, pad_id: int, never_drawn: Iterable[int], length: int
) -> tuple[HuggingFaceMaskedLM, list[str]]:
    """Open a masked language model in fp32 on the CPU, in eval mode, and look whether it can be an auxiliary.

    Args:
        folder: a directory of Hugging Face.
        size: V, the entries of the corpus's tokenizer.
        pad_id: its token of padding.
        never_drawn: its tokens that are never drawn.
        length: L, positions of the longest sequence.

    Returns:
        The model, and what a user should know of it, each in one line.

    Raises:
        UserError: the directory is damaged, or its model cannot be an auxiliary.
    """
    check_safe(folder)
    config = open_config(folder)
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"{folder} holds an encoder with a decoder ({config.model_type}): name that of an encoder")
    if type(config) not in quiet_transformers(folder).MODEL_FOR_MASKED_LM_MAPPING:
        raise UserError(f"{folder} holds no masked language model ({config.model_type}): name the directory of one")
    check_padding(folder, config, pad_id)
    if config.model_type == "big_bird":
        config.attention_type = "original_full"  # the other one draws random blocks
    deberta_v3.prepare(folder, config)
    model, info = load("AutoModelForMaskedLM", folder, config)
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"{folder} lacks weights of a masked language model ({len(missing)}, e.g. {missing[0]}): the auxiliary "
            "needs its trained head; name a model that was published with it"
        )
    rows = getattr(model.get_input_embeddings(), "num_embeddings", size)
    if rows < size:
        raise UserError(
            f"{folder} has {rows:,} tokens, and the tokenizer of the corpus has {size:,}: {own_tokenizer(folder)}"
        )
    positions_LD = deberta_v3.positions_of(folder, config)
    try:
        if positions_LD is not None:
            parts = deberta_v3.generator(model, positions_LD)
        else:
            parts = FAMILIES.get(config.model_type, generic)(model)
    except (ValueError, AttributeError) as error:
        raise UserError(f"{folder}: {config.model_type} cannot be an auxiliary: {first_line(error)}") from None
    wrapped = HuggingFaceMaskedLM(model, parts, size, never_drawn).eval()
    _probe_length(folder, wrapped, length)
    _probe(folder, wrapped, own_logits=positions_LD is None)
    notes = []
    if unread := sorted(key for key in info["unexpected_keys"] if not key.endswith(deberta_v3.POSITIONS)):
        notes.append(f"{len(unread)} weights in {folder} are not used ({unread[0]})")
    return wrapped, notes


@torch.no_grad()
def _probe(folder: Path, wrapped: HuggingFaceMaskedLM, own_logits: bool) -> None:
    """Compare the rows with the model's own logits, two equal calls, and a sequence alone with the same in a batch."""
    long, short = probe_tokens(wrapped.bias.shape[0], wrapped.pad_id)
    both, tokens_T = Layout.of(torch.tensor([len(long), len(short)])), torch.cat([long, short])
    every_T = torch.arange(len(tokens_T))
    try:
        first, again = (wrapped.hidden(tokens_T, both, every_T) for _ in range(2))
        alone = wrapped.hidden(short, Layout.of(torch.tensor([len(short)])), torch.arange(len(short)))
        weight_VE, _ = wrapped.head
        found_TV, bias = F.linear(first, weight_VE), wrapped._parts.bias
        if own_logits:
            padded = pad(tokens_T, both, wrapped.pad_id)
            model: Any = wrapped.model
            wanted_TV = padded.tokens(model(input_ids=padded.ids_BL, attention_mask=padded.mask_BL).logits)
            found = found_TV if bias is None else found_TV + bias[: wrapped._size]
            _expect(folder, found, wanted_TV[:, : wrapped._size], "its head is of a kind that is not known here")
    except (RuntimeError, TypeError, IndexError, ValueError, AttributeError, KeyError) as error:
        if isinstance(error, UserError):
            raise
        raise _not_run(folder, error) from None
    _expect(folder, again, first, "two calls with the same tokens differ")
    padding = "it reads the padding after a sequence, so the draws would depend on the batch"
    _expect(folder, F.linear(alone, weight_VE), found_TV[len(long) :], padding)


def _expect(folder: Path, found: Tensor, wanted: Tensor, otherwise: str) -> None:
    if differ(found, wanted):
        raise UserError(f"{folder} cannot be an auxiliary: {otherwise}; name another model")


def _not_run(folder: Path, error: Exception) -> UserError:
    return UserError(f"{folder} cannot be an auxiliary ({first_line(error)[:200]}): name another model")


@torch.no_grad()
def _probe_length(folder: Path, wrapped: HuggingFaceMaskedLM, length: int) -> None:
    """Run a short sequence, and one of L tokens twice. On a GPU a missing position would kill the process."""
    short, long = (
        (tokens_T, Layout.of(torch.tensor([len(tokens_T)])), torch.tensor([1, len(tokens_T) // 2]))
        for tokens_T in probe_tokens(wrapped.bias.shape[0], wrapped.pad_id, 3, length)
    )
    try:
        wrapped.hidden(*short)
    except Exception as error:  # whatever a model asks of its inputs
        raise _not_run(folder, error) from None
    try:
        first, again = (wrapped.hidden(*long) for _ in range(2))
    except (IndexError, RuntimeError):
        raise too_long(folder, wrapped.model, length, KEY) from None
    _expect(folder, again, first, "two calls with the same tokens differ")
