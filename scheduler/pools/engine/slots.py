"""The keys and values of every running answer: one row per slot, written where a model's attention layers ask.

transformers' own caches hold one batch that grows together. Here each row has a length of its own, so an answer
joins by taking the next row and leaves by letting another row move into its place. No row is ever padded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache


@dataclass(frozen=True, slots=True)
class CacheShape:
    """The size of one model's cache."""

    layers: int
    heads: int
    """Key-value heads, which may be fewer than attention heads."""
    head_size: int


@dataclass(frozen=True, slots=True)
class _Prefill:
    row: int
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class _Decode:
    rows: torch.Tensor
    positions: torch.Tensor
    span: int


class Slots(Cache):
    """Keys and values of `slots` rows of `context_tokens` each.

    A forward pass is aimed first (`aim_prefill` or `aim_decode`); `update` then writes what each layer made and returns
    what that layer may attend to. The memory is reserved at once and touched as it fills.
    """

    def __init__(self, shape: CacheShape, slots: int, context_tokens: int) -> None:
        # The base class wants a layer class to make layers of; this cache keeps its own tensors.
        self.layers: list[object] = []
        self.layer_class_to_replicate = None
        self.offloading = False
        # Zeros, not uninitialised memory: a NaN behind the mask would still poison the attention sum.
        size = (slots, shape.heads, context_tokens, shape.head_size)
        self._keys = [torch.zeros(size) for _ in range(shape.layers)]
        self._values = [torch.zeros(size) for _ in range(shape.layers)]
        self._aim: _Prefill | _Decode = _Prefill(0, 0, 0)

    def aim_prefill(self, row: int, start: int, count: int) -> None:
        """The next pass carries `count` tokens of one row, the first at position `start`."""
        self._aim = _Prefill(row, start, count)

    def aim_decode(self, positions: torch.Tensor, span: int) -> None:
        """The next pass carries one token for each of the first rows, at `positions`, all of them below `span`."""
        self._aim = _Decode(torch.arange(len(positions)), positions, span)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by each attention layer with [batch, heads, tokens, head size]; returns what it attends to."""
        keys, values, aim = self._keys[layer_idx], self._values[layer_idx], self._aim
        if isinstance(aim, _Prefill):
            end = aim.start + aim.count
            keys[aim.row, :, aim.start : end] = key_states[0]
            values[aim.row, :, aim.start : end] = value_states[0]
            row = slice(aim.row, aim.row + 1)
            return keys[row, :, :end], values[row, :, :end]
        keys[aim.rows, :, aim.positions] = key_states[:, :, 0]
        values[aim.rows, :, aim.positions] = value_states[:, :, 0]
        count = len(aim.rows)
        return keys[:count, :, : aim.span], values[:count, :, : aim.span]

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` of one row over another row."""
        for tensor in (*self._keys, *self._values):
            tensor[target, :, :tokens] = tensor[source, :, :tokens]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Asked by model code that makes masks itself; ours come ready-made, so the answer is not used."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Asked by model code that makes masks itself; ours come ready-made, so the answer is not used."""
        return query_length, 0
