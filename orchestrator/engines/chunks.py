"""What the chunks of a streamed completion mean. Pure: server-sent events in, engine events out.

Nothing of a chunk is passed through: the fields named here are read, every other field of the engine is dropped
(reasoning text and tool calls too; we never ask for them).
"""

from __future__ import annotations

import sys
from enum import Enum
from typing import Annotated

import msgspec

from orchestrator.engines.alike import LEARNS_AGAIN, LEARNS_FIRST, Alike, alike_of
from orchestrator.engines.generation import Delta, EngineEvent, Failed, Finished, FinishReason
from orchestrator.engines.sse import END_BYTES, EVENT_END, SseDecoder, SseEvent, SseFault, plain_data

_DONE = b"[DONE]"
_ERROR = "error"
_Count = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
"""What the frames and records that tell of it can hold (usage.proto)."""

WORDLESS_BYTES_MAX = 1_048_576
"""What an engine may send without a word of its answer or of its thoughts, before, between and after them.
Comments that keep a stream alive for an hour, one a second, are a twentieth of it."""
TEXTS_BEYOND = 4
"""So many more chunks than the tokens asked for are taken. As their sources have it, engines tell each step, which has
a token at least, in one chunk with text, or in none where they hold back half a character, or what may be the
beginning of a tag or of a stop string: vLLM (`chat_completion_stream_generator`), llama.cpp (`process_token`), SGLang
(`_generate_stream_content`). Two chunks come of a step in which a thought ends (llama.cpp's `compute_diffs`, SGLang;
vLLM puts both into one), and one or two of no step, at the end, with what was held back (llama.cpp's final result, the
`finish` of SGLang's `ReasoningParser`): three in all, and one to spare."""
USAGE_BEYOND = 256
"""So many more tokens than asked for are believed. Engines that draft tokens ahead may have some beyond the end:
SGLang cuts them off before it counts (`output_ids_through_stop`), its older versions did not. Nobody is billed for
them."""


class UsageExpectation(Enum):
    """What we ask of an engine's token counts."""

    REQUIRED = "required"
    """A complete answer without usage is a failure of the engine."""
    OPTIONAL = "optional"
    """Without usage, chunks with text count as one token each, and the prompt as 0 tokens: it is not metered."""


# There are thousands of these a second. They hold no cycles, so the collector need not look at them (`gc=False`).
class _PromptDetails(msgspec.Struct, frozen=True, gc=False):
    cached_tokens: _Count | None = None


class _Usage(msgspec.Struct, frozen=True, gc=False):
    prompt_tokens: _Count
    completion_tokens: _Count
    prompt_tokens_details: _PromptDetails | None = None


class _ChoiceDelta(msgspec.Struct, frozen=True, gc=False):
    content: str | None = None
    reasoning_content: object = None
    reasoning: object = None
    """The two names of thoughts. Nothing is read of them but that the engine is at work: it may think for long."""


class _Choice(msgspec.Struct, frozen=True, gc=False):
    index: int
    delta: _ChoiceDelta | None = None
    """Of a chat completion."""
    text: str | None = None
    """Of the continuation of a raw prompt."""
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, frozen=True, gc=False):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: object = None
    """Of an error, in one of the two shapes that are in use: {"error": {...}}."""
    kind: str = msgspec.field(name="object", default="")
    """The other one: {"object": "error", "message": ...}."""


_CHUNK = msgspec.json.Decoder(_Chunk)

_FINISH_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}
# An answer that a filter or an operator cut is not complete, so it must not end as if it were.
_FAILED_FINISHES = {
    "content_filter": "the engine's content filter cut the answer",
    "abort": "the engine aborted the answer",
    "error": "the engine ended the answer with an error",
}
_FAULTS = {
    SseFault.LINE_TOO_LONG: "the engine sent a line beyond the bound",
    SseFault.EVENT_TOO_LONG: "the engine sent an event beyond the bound",
    SseFault.NOT_UTF8: "the engine sent bytes that are not UTF-8",
}


class AnswerReader:
    """Reads one answer until `Finished` or `Failed`: bytes in, engine events out. After either it reads nothing more.

    It tells the text of each chunk that has one (one token each, no ids: such engines tell none unasked) and never
    `Started`: the prompt count comes only with the usage at the end, in `Finished`. `stop` and `length` finish an
    answer. Every other reason fails it: `content_filter`, `abort`, `error` with `engine_failed`, and `tool_calls`,
    `function_call` and unknown ones with `engine_protocol`.
    """

    __slots__ = (
        "_alike",
        "_begun",
        "_cached_tokens",
        "_chunks_max",
        "_chunks_of_thought",
        "_chunks_with_text",
        "_decoder",
        "_finish_reason",
        "_learns_at",
        "_line_bytes_max",
        "_tokens_max",
        "_usage",
        "_usage_expectation",
        "_wordless_bytes",
        "_words_before",
        "ended",
        "prompt_tokens_max",
    )

    def __init__(self, line_bytes_max: int, usage: UsageExpectation, tokens_max: int | None = None) -> None:
        """`tokens_max` is what the engine was asked for at most, or its context holds; None where neither is known."""
        self._tokens_max = sys.maxsize if tokens_max is None else tokens_max
        self._chunks_max = self._tokens_max + TEXTS_BEYOND
        """How many chunks with text may come. A thought takes the place of one."""
        self._line_bytes_max = line_bytes_max
        self._usage_expectation = usage
        self._usage: _Usage | None = None
        self._cached_tokens = 0
        self._finish_reason: FinishReason | None = None
        self._chunks_with_text = self._chunks_of_thought = 0
        self._wordless_bytes = self._words_before = 0
        """What came since the last word, and how many chunks with words there were by then."""
        self._alike: Alike | None = None
        self._learns_at = LEARNS_FIRST
        """How many chunks come before it tries to learn what they are like."""
        self._decoder: SseDecoder | None = None
        """Of what is cut or unusual. Most answers have nothing of that."""
        self._begun = False
        """Whether something was read without it: a byte order mark may come no more."""
        self.prompt_tokens_max = sys.maxsize
        """How many tokens of a prompt are believed. Nobody knows before the request is spelled."""
        self.ended = False
        """Whether `Finished` or `Failed` was returned; nothing comes after it."""

    def feed_parts(self, parts: list[bytes]) -> list[EngineEvent]:
        """Takes the next bytes of the body in the parts that they came in, as `feed` takes them joined.

        Nothing but quicker where each part is one event: so engines frame them, and most come alone.
        """
        alike, decoder = self._alike, self._decoder
        if alike is None or not parts or self._finish_reason is not None or self.ended:
            return self.feed(b"".join(parts))
        if decoder is not None and not decoder.between:
            return self.feed(b"".join(parts))
        if len(parts) == 1:
            text = alike.text(parts[0], self._line_bytes_max)
            if text:
                self._chunks_with_text += 1
                return [Delta(text, (), 1)] if self._chunks_with_text <= self._chunks_max else self._too_long([text])
        else:
            texts = alike.texts_of(parts, self._line_bytes_max)
            if texts is not None and "" not in texts:
                self._chunks_with_text += len(texts)
                if self._chunks_with_text > self._chunks_max:
                    return self._too_long(texts)
                return [Delta("".join(texts), (), len(texts))]
        return self.feed(b"".join(parts))

    def feed(self, data: bytes) -> list[EngineEvent]:
        """Takes the next bytes of the body; empty bytes are the end of the stream.

        The text of all chunks that came together is one `Delta`: what follows has less to do for each token.
        """
        if not data:
            return self._end()
        texts: list[str] = []
        events: list[EngineEvent] = []
        decoder = self._decoder
        if data.endswith(EVENT_END) and (decoder is None or decoder.between):
            self._read_events(data, texts, events)
        else:
            self._read_cut(data, texts, events)
        if self._chunks_with_text > self._chunks_max:
            return self._too_long(texts)
        if texts:
            return [Delta("".join(texts), (), len(texts)), *events]
        return events if self.ended else self._wordless(len(data))

    def _too_long(self, texts: list[str]) -> list[EngineEvent]:
        """Returns what is left of the texts that came, and that this was too much, whatever came with it."""
        texts = texts[: max(0, len(texts) - (self._chunks_with_text - self._chunks_max))]
        self._chunks_max = sys.maxsize  # it is said once
        detail = "the engine went on beyond the tokens that it was asked for, or that its context holds"
        failed = self._fail("engine_protocol", detail)
        return [Delta("".join(texts), (), len(texts)), failed] if texts else [failed]

    def _wordless(self, count: int) -> list[EngineEvent]:
        """Counts bytes that came without a text: an engine that sends nothing else must not take our time for good."""
        words = self._chunks_with_text + self._chunks_of_thought
        if words != self._words_before:
            self._words_before, self._wordless_bytes = words, 0
        self._wordless_bytes += count
        if self._wordless_bytes <= WORDLESS_BYTES_MAX:
            return []
        return [self._fail("engine_protocol", "the engine sent too much without going on with its answer")]

    def _read_cut(self, data: bytes, texts: list[str], events: list[EngineEvent]) -> None:
        """Takes bytes that begin or end in the midst of an event: what is whole between is read together."""
        decoder = self._decoder
        begin = 0
        if decoder is not None and not decoder.between:
            begin = data.find(EVENT_END) + END_BYTES
            begin = len(data) if begin < END_BYTES else begin
            self._decode(data[:begin], texts, events)
        end = data.rfind(EVENT_END, begin) + END_BYTES
        if end > begin and (decoder is None or decoder.between):
            self._read_events(data[begin:end], texts, events)
            begin = end
        rest = data[begin:]
        if rest:
            self._decode(rest, texts, events)

    def _decode(self, data: bytes, texts: list[str], events: list[EngineEvent]) -> None:
        """Takes bytes wherever they were cut."""
        decoder = self._decoder
        if decoder is None:
            # A chunk is one line in practice, so one bound serves both.
            bytes_max = self._line_bytes_max
            decoder = self._decoder = SseDecoder(line_bytes_max=bytes_max, event_bytes_max=bytes_max)
            decoder.on_first_line = not self._begun
        for event in decoder.feed(data):
            self._read(event, texts, events)

    def _read_events(self, data: bytes, texts: list[str], events: list[EngineEvent]) -> None:
        """Takes whole events, together where they are alike."""
        found = None if self._alike is None else self._alike.texts(data, self._line_bytes_max)
        if found is None:
            chunks = plain_data(data, self._line_bytes_max)
            if chunks is None:
                self._decode(data, texts, events)
                return
            read = self._chunks_with_text + len(chunks)
            if read >= self._learns_at:
                # Nothing is known yet, or something else changed, such as a time.
                self._learns_at = read + LEARNS_AGAIN
                self._alike = alike_of(chunks[len(chunks) // 2], _text_of)
                found = None if self._alike is None else self._alike.texts(data, self._line_bytes_max)
            if found is None:
                self._read_chunks(chunks, texts, events)
                return
        self._begun = True
        begin, end, told = found
        if begin:
            self._read_few(data[:begin], texts, events)
        if self.ended or self._finish_reason is not None:
            end = begin  # no text may come any more
        else:
            if "" in told:
                told = [text for text in told if text]
            self._chunks_with_text += len(told)
            texts += told
        if end < len(data):
            self._read_few(data[end:], texts, events)

    def _read_few(self, data: bytes, texts: list[str], events: list[EngineEvent]) -> None:
        """Takes whole events that are not alike."""
        chunks = plain_data(data, self._line_bytes_max)
        if chunks is None:
            self._decode(data, texts, events)
        else:
            self._read_chunks(chunks, texts, events)

    def _read_chunks(self, chunks: list[bytes], texts: list[str], events: list[EngineEvent]) -> None:
        """Takes the data of events that have no name, and adds what they hold: each text is one token.

        Nothing comes after an end, so texts stand before events.
        """
        self._begun = True
        decode = _CHUNK.decode
        for chunk_bytes in chunks:
            if self.ended:
                return
            if chunk_bytes == _DONE:
                events.append(self._done())
                continue
            try:
                chunk = decode(chunk_bytes)
            except (msgspec.DecodeError, RecursionError):
                # The exception may quote the payload, so nothing of it is kept.
                events.append(self._fail("engine_protocol", "the engine sent a chunk that cannot be read"))
                return
            failed = self._take(chunk, texts)
            if failed is not None:
                events.append(failed)

    def _read(self, event: SseEvent | SseFault, texts: list[str], events: list[EngineEvent]) -> None:
        """Takes the next event of the stream, likewise."""
        if self.ended:
            return
        if isinstance(event, SseFault):
            events.append(self._fail("engine_protocol", _FAULTS[event]))
        elif event.name == "error":
            events.append(self._fail("engine_failed", "the engine reported an error in the middle of its answer"))
        elif event.name not in ("", "message"):
            events.append(self._fail("engine_protocol", "the engine sent an event of an unknown kind"))
        else:
            self._read_chunks([event.data.encode()], texts, events)

    def _end(self) -> list[EngineEvent]:
        """Takes the end of the stream: without `[DONE]` the answer was cut, however complete it looks."""
        if self.ended:
            return []
        if self._finish_reason is None:
            return [self._fail("engine_failed", "the engine ended its stream before the answer was complete")]
        return [self._fail("engine_protocol", "the engine ended its stream without [DONE]")]

    def _take(self, chunk: _Chunk, texts: list[str]) -> Failed | None:
        choices = chunk.choices
        if chunk.error is not None or chunk.kind == _ERROR:
            return self._fail("engine_failed", "the engine reported an error in the middle of its answer")
        if choices is None:
            return self._fail("engine_protocol", "the engine sent a chunk without choices")
        if choices and (len(choices) > 1 or choices[0].index != 0):
            return self._fail("engine_protocol", "the engine sent more than the one choice asked for")
        usage = chunk.usage
        if usage is not None:
            details = usage.prompt_tokens_details
            self._usage, self._cached_tokens = usage, 0 if details is None else details.cached_tokens or 0
            if self._cached_tokens > usage.prompt_tokens:
                return self._fail("engine_protocol", "the engine's usage contradicts itself")
            if usage.prompt_tokens > self.prompt_tokens_max:
                return self._fail("engine_protocol", "the engine's usage tells more tokens than the prompt can have")
            if usage.completion_tokens > self._tokens_max + USAGE_BEYOND:
                return self._fail("engine_protocol", "the engine's usage is beyond the tokens that it was asked for")
        if not choices:
            return None
        choice = choices[0]
        if choice.delta is None and choice.text is None:
            return self._fail("engine_protocol", "the engine sent a choice without a text")
        text = choice.text if choice.delta is None else choice.delta.content
        reason = choice.finish_reason
        if self._finish_reason is not None and (text or reason is not None):
            return self._fail("engine_protocol", "the engine went on after the end of its answer")
        if text:
            self._chunks_with_text += 1
            texts.append(text)
        elif choice.delta is not None and (choice.delta.reasoning_content or choice.delta.reasoning):
            self._chunks_of_thought += 1
            self._chunks_max -= 1
        if reason is None:
            return None
        self._finish_reason = _FINISH_REASONS.get(reason)
        if self._finish_reason is not None:
            return None
        if reason in _FAILED_FINISHES:
            return self._fail("engine_failed", _FAILED_FINISHES[reason])
        return self._fail("engine_protocol", "the engine ended its answer for a reason we do not know")

    def _done(self) -> Finished | Failed:
        if self._finish_reason is None:
            return self._fail("engine_protocol", "the engine sent [DONE] without a finish reason")
        usage = self._usage
        if usage is None and self._usage_expectation is UsageExpectation.REQUIRED:
            return self._fail("engine_protocol", "the engine reported no usage")
        self.ended = True
        if usage is None:
            made = min(self._chunks_with_text, self._tokens_max)
            return Finished(self._finish_reason, prompt_tokens=0, completion_tokens=made)
        return Finished(self._finish_reason, usage.prompt_tokens, usage.completion_tokens, self._cached_tokens)

    def _fail(self, code: str, detail: str) -> Failed:
        self.ended = True
        return Failed(code, detail)


def _text_of(data: bytes) -> str | None:
    """Returns the text of a chunk that is nothing but a text; None for every other."""
    try:
        chunk = _CHUNK.decode(data)
    except (msgspec.DecodeError, RecursionError):
        return None
    choices = chunk.choices
    if not choices or len(choices) > 1 or chunk.usage is not None or chunk.error is not None or chunk.kind == _ERROR:
        return None
    choice = choices[0]
    if choice.index != 0 or choice.finish_reason is not None or choice.delta is None:
        return None
    return choice.delta.content
