"""A prepared model directory small enough to build in every run: a random Llama over a byte-level tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from scheduler.pools.engine.detokenise import byte_alphabet
from scheduler.pools.engine.identity import write_digests

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = (("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "hello"), ("Ċ", "Ċ"), ("u", "s"), ("us", "er"))
TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] == 'assistant' %}{{ raise_exception('assistant first') }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CONTEXT_MAX = 512


def build_tiny_model(directory: Path, *, end_id: int = 2) -> Path:
    """Write weights, tokenizer, template and digests; the same bytes in every run. `end_id` ends an answer."""
    tokenizer = _tokenizer()
    torch.manual_seed(20261124)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_MAX,
        # Wide enough that the two best tokens are far apart, as in a trained model.
        initializer_range=0.5,
        bos_token_id=1,
        eos_token_id=end_id,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        # A logit of nought: no greedy answer ends by itself, so tests say how long answers are.
        model.lm_head.weight[: len(CONTROL)] = 0
    model.save_pretrained(str(directory))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(str(directory))
    write_digests(directory, model="tiny", quantisation="float32", gguf=None)
    return directory


def _tokenizer() -> Tokenizer:
    words = [*CONTROL, *sorted(byte_alphabet(), key=ord), *("".join(pair) for pair in MERGES if pair != ("us", "er"))]
    words.insert(-1, "er")
    words.append("user")
    vocabulary = {word: index for index, word in enumerate(words)}
    merges = [*MERGES[:-1], ("e", "r"), MERGES[-1]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in CONTROL])
    return tokenizer
