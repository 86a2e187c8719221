"""From a conversation to prompt tokens, by the model's own chat template.

The template never sees what a tenant wrote: it is rendered over placeholders, and the text is put in their place as
text. So `<|im_end|>` in a message is some characters that somebody wrote and never the end of their turn.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from orchestrator.engines.generation import Generation, Message, Refused
from scheduler.pools.engine.detokenise import token_table
from scheduler.pools.engine.identity import TOKENIZER_FILE

# Private-use characters: no template of a model writes them, and no tenant's text is in what is searched for them.
_OPEN, _CLOSE = "\ue000", "\ue001"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that fits. Payload: its repr holds no ids."""

    token_ids: tuple[int, ...]
    tokens_max: int
    """The most tokens of the whole answer; at least 1."""
    said_ids: tuple[int, ...] = ()
    """The answer's first tokens, where it goes on with one that was cut."""

    @property
    def read_ids(self) -> tuple[int, ...]:
        """Everything that is read before the next token."""
        return self.token_ids + self.said_ids

    def __repr__(self) -> str:
        return f"Prompt(tokens={len(self.token_ids)}, tokens_max={self.tokens_max})"


class Prompter:
    """Renders and counts prompts for one model. Used by one thread at a time."""

    def __init__(self, model_dir: Path, context_tokens: int) -> None:
        """Raises OSError or ValueError when the tokenizer in `model_dir` cannot be used."""
        self._context_tokens = context_tokens
        self._template = AutoTokenizer.from_pretrained(str(model_dir), local_files_only=True)
        self._text = Tokenizer.from_file(str(model_dir / TOKENIZER_FILE))
        self._text.no_truncation()
        self._text.no_padding()
        self._text.encode_special_tokens = True
        added = {token_id: token.content for token_id, token in self._text.get_added_tokens_decoder().items()}
        special = {token_id for token_id, token in self._text.get_added_tokens_decoder().items() if token.special}
        self._control = {added[token_id]: token_id for token_id in special}
        self.token_table = token_table(self._text.get_vocab(with_added_tokens=False), added, special)
        """The bytes of each token id; empty for control tokens."""
        longest_first = sorted(self._control, key=len, reverse=True)
        words = "|".join(re.escape(word) for word in longest_first) or "(?!)"
        self._marks = re.compile(f"(?P<control>{words})|{_OPEN}(?P<message>[0-9]+){_CLOSE}")

    def control_id(self, word: str) -> int | None:
        """The id of a control token, or None when this model has none of that name."""
        return self._control.get(word)

    def render(self, generation: Generation) -> Prompt | Refused:
        """The prompt's tokens, or why this engine refuses it. The refusal's sentence holds counts and no text."""
        try:
            raw = generation.raw_prompt
            token_ids = self._token_ids(generation.messages) if raw is None else self._raw_token_ids(raw)
        except TemplateError:
            return Refused("bad_generation", "The model's chat template does not take this order of roles.", "messages")
        except UnicodeEncodeError:
            return Refused("bad_generation", "A message holds a lone surrogate, which is not text.", "messages")
        if not token_ids:
            return Refused("bad_generation", "The conversation renders to an empty prompt.", "messages")
        room = self._context_tokens - len(token_ids)
        wanted = generation.sampling.max_tokens
        fewest = max(1, generation.sampling.min_tokens)
        if room < (wanted or fewest):
            answer = f"max_tokens asks for {wanted}" if wanted else f"an answer needs at least {fewest}"
            return Refused(
                "context_length_exceeded",
                f"The prompt holds {len(token_ids)} tokens and {answer}; the context of this engine is "
                f"{self._context_tokens} tokens.",
                "messages",
            )
        said_ids = () if generation.said is None else generation.said.ids
        if len(said_ids) > (wanted or room):
            return Refused("identity_mismatch", "More tokens were said than this engine's answer may have.")
        return Prompt(token_ids, wanted or room, said_ids)

    def _raw_token_ids(self, text: str) -> tuple[int, ...]:
        """The tokens of a text that is continued as it stands, after whatever the model begins every text with."""
        text.encode()  # raises for a lone surrogate, which the tokenizer reports less clearly
        return tuple(self._text.encode_batch([text], add_special_tokens=True)[0].ids)

    def _token_ids(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        placeholders = [
            {"role": message.role.value, "content": f"{_OPEN}{index}{_CLOSE}"} for index, message in enumerate(messages)
        ]
        rendered: str = self._template.apply_chat_template(placeholders, tokenize=False, add_generation_prompt=True)
        # Between two control tokens, template text and message text are one stretch and are tokenised together, so
        # ordinary conversations get the very tokens that the model was trained on.
        stretches, controls = [""], []
        end = 0
        for mark in self._marks.finditer(rendered):
            stretches[-1] += rendered[end : mark.start()]
            end = mark.end()
            word = mark["control"]
            if word is None:
                text = messages[int(mark["message"])].text
                text.encode()  # raises for a lone surrogate, which the tokenizer reports less clearly
                stretches[-1] += text
            else:
                controls.append(self._control[word])
                stretches.append("")
        stretches[-1] += rendered[end:]
        # `encode_batch` lets other threads run while it works; `encode` would hold up the engine's thread.
        encoded = self._text.encode_batch(stretches, add_special_tokens=False)
        token_ids = list(encoded[0].ids)
        for control, stretch in zip(controls, encoded[1:], strict=True):
            token_ids.append(control)
            token_ids.extend(stretch.ids)
        return tuple(token_ids)
