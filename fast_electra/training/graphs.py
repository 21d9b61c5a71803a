"""The frozen auxiliary's forward pass as CUDA graphs: one launch where there were hundreds.

A graph fixes shapes and addresses. Sampling, where the temperature enters, is no part of it: a new temperature needs no
new graph.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fast_electra.model.dropout import KeyedDropout

LIMIT = 8  # graphs; they share their working memory
ROWS = 256  # masked positions are padded to a multiple of this, or of some 1/16 of all positions if that is more
WARM_UP = 3  # passes before a capture: libraries get their handles and workspaces, modules fill their caches

Inputs = tuple[Tensor, Tensor | None, Tensor]  # tokens_BL, attended_BL, positions_M
Key = tuple[tuple[int, ...], bool, int]


class Graph(NamedTuple):
    """A captured pass: `replay` reads `inputs` and writes `output_ME`, all of them at fixed addresses."""

    replay: Callable[[], None]
    inputs: Inputs
    output_ME: Tensor
    kept: list[Tensor]  # what else the graph reads, besides the weights


class Captured:
    """Calls an inference engine around a frozen model in eval mode; on a GPU, by replaying a graph for each shape.

    On a CPU every call is handed through as it is, and on a GPU those are that need something else than the plain
    pass to the hidden states: logits, dropout, or the hooks of a profiler, which a replay would pass by.

    Weights that change in place are seen by the next replay; to put others in their place needs a new `Captured`.
    All calls must come from one stream.
    """

    def __init__(self, engine: nn.Module, limit: int = LIMIT) -> None:
        """
        Args:
            engine: called as `MaskedLanguageModel` is, and without a wait for the device in it.
            limit: graphs to keep, those of the first shapes that come; the engine itself does the others.
        """
        self.engine, self.limit = engine, limit
        self.graphs: dict[Key, Graph] = {}
        self._all_modules = list(engine.modules())

    def __call__(
        self,
        tokens_BL: Tensor,
        attended_BL: Tensor | None,
        positions_M: Tensor,
        hidden_only: bool = False,
        drop: KeyedDropout | None = None,
    ) -> Tensor:
        """What the model returns: [M, E] with `hidden_only`, of the model's dtype; the caller's own, never overwritten.

        Args:
            tokens_BL: int64.
            attended_BL: bool, False at padding; None where there is none, which has a graph of its own.
            positions_M: int64, flat positions. They are padded here even where no graph is used, so that results do
                not depend on which shapes came first: products of other shapes may round otherwise.
            hidden_only, drop: as the model's own.
        """
        if not self._on_gpu(tokens_BL) or not hidden_only or drop is not None or self._hooked():
            more: dict[str, Any] = {} if drop is None else {"drop": drop}
            result: Tensor = self.engine(tokens_BL, attended_BL, positions_M, hidden_only=hidden_only, **more)
            return result
        inputs = (tokens_BL, attended_BL, padded(positions_M, tokens_BL.numel()))
        key = (tuple(tokens_BL.shape), attended_BL is not None, len(inputs[2]))
        with torch.no_grad():
            if key not in self.graphs and len(self.graphs) < self.limit:
                self.graphs[key] = self._capture(inputs)
            if key in self.graphs:
                hidden_ME = _replay(self.graphs[key], inputs)
            else:
                hidden_ME = self.engine(*inputs, hidden_only=True)
        return hidden_ME[: len(positions_M)].clone()

    def _on_gpu(self, tokens_BL: Tensor) -> bool:
        return tokens_BL.is_cuda

    def _hooked(self) -> bool:
        """Whether somebody wants to see the modules called: DeepSpeed's flops profiler, or its engine's timers."""
        return any(module._forward_hooks or module._forward_pre_hooks for module in self._all_modules)

    @cached_property
    def _place(self) -> tuple[torch.cuda.Stream, Any]:
        """The stream of all captures, and the memory pool that they share: graphs never run at the same time."""
        return torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def _capture(self, inputs: Inputs) -> Graph:
        stream, pool = self._place
        tokens_BL, attended_BL, positions_M = inputs
        static = (tokens_BL.clone(), None if attended_BL is None else attended_BL.clone(), positions_M.clone())
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.engine(*static, hidden_only=True)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Thread by thread: what NCCL's watchdog asks of the device meanwhile is no error.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            output_ME = self.engine(*static, hidden_only=True)
        # What a module caches beside its weights it may replace, as the relative bias does when a longer batch comes.
        kept = [value for module in self._all_modules for value in vars(module).values() if isinstance(value, Tensor)]
        return Graph(graph.replay, static, output_ME, kept)


def padded(positions_M: Tensor, positions: int) -> Tensor:
    """int64: `positions_M` and zeros up to one of a few lengths, so that M, which varies, needs few graphs.

    Position 0 always exists, each position is a row of its own in all that follows, and the caller drops the last
    rows: padding costs a little of the last layer and changes nothing else.

    Args:
        positions: B * L, of all sequences.
    """
    multiple = ROWS * max(1, positions // (16 * ROWS))
    return F.pad(positions_M, (0, -len(positions_M) % multiple))


def _replay(graph: Graph, inputs: Inputs) -> Tensor:
    """Hidden states [padded M, E], which the next replay overwrites."""
    for static, given in zip(graph.inputs, inputs, strict=True):
        if static is not None and given is not None:
            static.copy_(given)
    graph.replay()
    return graph.output_ME
