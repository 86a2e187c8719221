"""The body of a request to an engine: its fields, their order, and what is left out."""

from __future__ import annotations

import pytest

from orchestrator.engines.generation import Generation, Message, ModelId, Resume, Role, Said, Sampling
from orchestrator.engines.request import body_of
from orchestrator.policy.ids import digest_of

SAYS = (Message(Role.SYSTEM, "s"), Message(Role.USER, "u"))
RAW = (Message(Role.PROMPT, "p"),)
SAID = Said(Resume.TEXT, digest_of(b"any"), 2, "w0 w1 ")
SILENT = Said(Resume.TEXT, digest_of(b"any"), 2, "")
FULL = Sampling(0.5, 0.9, 2**64 - 1, ("a", "b"), 7, ignore_eos=True, min_tokens=3)
STREAM = b'"stream":true,"stream_options":{"include_usage":true},'
MESSAGES = b'"messages":[{"role":"system","content":"s"},{"role":"user","content":"u"}'
USUAL = b'"temperature":1.0,"top_p":1.0}'


@pytest.mark.parametrize(
    ("messages", "sampling", "said", "body"),
    [
        (SAYS, Sampling(), None, b'{"model":"m",' + MESSAGES + b"]," + STREAM + USUAL),
        (RAW, Sampling(), None, b'{"model":"m","prompt":"p",' + STREAM + USUAL),
        (RAW, Sampling(), SAID, b'{"model":"m","prompt":"pw0 w1 ",' + STREAM + USUAL),
        (SAYS, Sampling(), SILENT, b'{"model":"m",' + MESSAGES + b"]," + STREAM + USUAL),
        (
            SAYS,
            FULL,
            SAID,
            b'{"model":"m",'
            + MESSAGES
            + b',{"role":"assistant","content":"w0 w1 "}],"continue_final_message":true,"add_generation_prompt":false,'
            + STREAM
            + b'"temperature":0.5,"top_p":0.9,"seed":9223372036854775807,"stop":["a","b"],"max_tokens":5,'
            b'"ignore_eos":true,"min_tokens":1}',
        ),
        (
            SAYS,
            Sampling(seed=0, max_tokens=3, min_tokens=2),
            SILENT,
            b'{"model":"m",' + MESSAGES + b"]," + STREAM + USUAL[:-1] + b',"seed":0,"max_tokens":1}',
        ),
    ],
)
def test_what_is_not_asked_for_is_left_out(
    messages: tuple[Message, ...], sampling: Sampling, said: Said | None, body: bytes
) -> None:
    generation = Generation(ModelId("m"), messages, sampling, said)
    assert body_of(generation, generation.raw_prompt, "m") == body


@pytest.mark.parametrize("stop", [(), ("\ud800",)])
def test_what_is_no_unicode_is_not_asked_for(stop: tuple[str, ...]) -> None:
    messages = (Message(Role.USER, "u" if stop else "\ud800"),)
    assert body_of(Generation(ModelId("m"), messages, Sampling(stop=stop)), None, "m") is None
