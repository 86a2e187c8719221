"""One model in memory: a prepared directory in, logits out. The only file that runs torch's forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from orchestrator.engines.generation import ModelId
from scheduler.pools.engine.identity import ModelIdentity, verified_digests
from scheduler.pools.engine.prompt import Prompter
from scheduler.pools.engine.slots import CacheShape, Slots

# Families whose every layer attends to the whole context with plain keys and values, as the slot cache assumes.
FAMILIES = frozenset({"llama"})

# Ends of an answer that some models' configs leave out.
_END_WORDS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "</s>")


class ServedModel:
    """A model, its tokenizer and its identity. Used by the engine's thread; only `prompter` is another thread's."""

    def __init__(self, model_dir: Path, *, slots: int, context_tokens: int, threads: int) -> None:
        """Load the model. `threads` is how many threads torch may use when called from this thread.

        Raises ModelDamagedError when the files are not those that were prepared, OSError when they cannot be read, and
        ValueError when the model cannot be served so.
        """
        digests = verified_digests(model_dir)
        self.identity: ModelIdentity = digests.identity()
        """What resume compares."""
        self.name = ModelId(digests.model)
        """The name the model was prepared under."""
        torch.set_num_threads(threads)
        disable_progress_bar()
        model = AutoModelForCausalLM.from_pretrained(str(model_dir), dtype=torch.float32, local_files_only=True)
        config = model.config
        if config.model_type not in FAMILIES:
            raise ValueError(f"models of the family {config.model_type} are not served; served are {sorted(FAMILIES)}")
        if context_tokens > config.max_position_embeddings:
            raise ValueError(
                f"context_tokens is {context_tokens}, but the model was made for {config.max_position_embeddings}"
            )
        model.eval()
        self._body: Any = model.base_model
        self._head: Any = model.get_output_embeddings()
        self.prompter = Prompter(model_dir, context_tokens)
        """Renders prompts, and holds the bytes of each token."""
        self.end_ids = _end_ids(model.generation_config.eos_token_id, self.prompter)
        """Tokens that end an answer."""
        shape = CacheShape(config.num_hidden_layers, config.num_key_value_heads, config.head_dim)
        self.slots = Slots(shape, slots, context_tokens)
        """The keys and values of all rows."""

    def prefill(self, row: int, token_ids: Sequence[int], start: int) -> npt.NDArray[np.float32]:
        """Feed some more of one row's prompt, whose first `start` tokens were fed before. Logits after the last."""
        count = len(token_ids)
        positions = torch.arange(start, start + count)
        mask = torch.arange(start + count)[None, :] <= positions[:, None]
        self.slots.aim_prefill(row, start, count)
        ids = torch.tensor([list(token_ids)], dtype=torch.long)
        return self._forward(ids, positions[None, :], mask[None, None])[0]

    def decode(self, token_ids: Sequence[int], positions: Sequence[int]) -> npt.NDArray[np.float32]:
        """Feed one token to each of the first rows, at its position. Logits of shape [rows, vocabulary]."""
        places = torch.tensor(list(positions), dtype=torch.long)
        span = max(positions) + 1
        mask = torch.arange(span)[None, :] <= places[:, None]
        self.slots.aim_decode(places, span)
        ids = torch.tensor(list(token_ids), dtype=torch.long)[:, None]
        return self._forward(ids, places[:, None], mask[:, None, None])

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            hidden = self._body(
                input_ids=ids, position_ids=positions, attention_mask=mask, past_key_values=self.slots
            ).last_hidden_state
            # The head over the last token alone: over a whole prompt it would cost more than the layers below.
            logits: npt.NDArray[np.float32] = self._head(hidden[:, -1]).numpy()
        return logits


def _end_ids(configured: int | list[int] | None, prompter: Prompter) -> frozenset[int]:
    ids = {configured} if isinstance(configured, int) else set(configured or ())
    ids.update(found for word in _END_WORDS if (found := prompter.control_id(word)) is not None)
    return frozenset(ids)
