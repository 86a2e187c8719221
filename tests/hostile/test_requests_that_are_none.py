"""What is no request is told so, with a code, and on the connection that it came on alone."""

from __future__ import annotations

import asyncio
import json

import pytest

from benchmarks.stand import INSTANT, TWO_HOP
from tests.hostile.besieged import Besieged
from tests.hostile.client import CANARY, Answer, body, get, head, request

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

MODEL = f"{INSTANT}-{TWO_HOP}"
BODY = body(MODEL, stream=False, max_tokens=2)
RIGHT = (200, "")


def framed(key: str) -> dict[str, tuple[bytes, tuple[int, str]]]:
    """Requests by their names: the bytes, and what is answered."""
    plain, length = request(key, BODY), f"Content-Length: {len(BODY)}"

    def with_line(*lines: str) -> bytes:
        return request(key, BODY, *lines)

    def chunked(data: bytes) -> bytes:
        return head(key, None, "Transfer-Encoding: chunked") + data

    chunk = b"%x\r\n%b\r\n" % (len(BODY), BODY)
    header, line, cut = (400, "invalid_header"), (400, "invalid_request_line"), (400, "body_incomplete")
    return {
        "plain": (plain, RIGHT),
        "chunked": (chunked(chunk + b"0\r\n\r\n"), RIGHT),
        "empty line before": (b"\r\n" + plain, line),
        "HTTP/1.0": (plain.replace(b"HTTP/1.1", b"HTTP/1.0"), RIGHT),
        "continue": (with_line("Expect: 100-continue"), RIGHT),
        "both lengths": (with_line("Transfer-Encoding: chunked"), header),
        "coding twice": (head(key, None, "Transfer-Encoding: gzip, chunked") + chunk, header),
        "length twice": (with_line(length), header),
        "length with a sign": (plain.replace(length.encode(), b"Content-Length: +5"), header),
        "length beyond": (plain.replace(length.encode(), b"Content-Length: 99999999999"), (413, "body_too_large")),
        "chunk extension": (chunked(chunk.replace(b"\r\n", b";a=b\r\n", 1) + b"0\r\n\r\n"), cut),
        "trailer": (chunked(chunk + b"0\r\nX: y\r\n\r\n"), cut),
        "negative chunk": (chunked(b"-5\r\n" + BODY), cut),
        "huge chunk": (chunked(b"ffffffffffffffff\r\n" + BODY), cut),
        "crumbs": (chunked(b"1\r\nx\r\n" * 5_000), (413, "body_too_large")),
        "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", line),
        "HTTP/9": (plain.replace(b"HTTP/1.1", b"HTTP/9.9"), line),
        "bare line feeds": (plain.replace(b"\r\n", b"\n"), line),
        "control character": (with_line("X: a\0b"), header),
        "folded": (with_line("X: a", " b"), header),
        "space before colon": (with_line("X : a"), header),
        "underscore": (with_line("content_length: 3"), header),
        "no host": (plain.replace(b"Host: x\r\n", b""), header),
        "two hosts": (with_line("Host: y"), header),
        "absolute target": (plain.replace(b"/v1/", b"http://e/v1/", 1), line),
        "tunnel": (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", line),
        "many headers": (with_line(*(f"X{number}: y" for number in range(200))), (431, "head_too_large")),
        "large header": (with_line("X: " + "a" * 100_000), (431, "head_too_large")),
        "long path": (get("/" + "a" * 5_000), (431, "head_too_large")),
        "packed": (with_line("Content-Encoding: gzip"), (415, "unsupported_media_type")),
        "plain text": (plain.replace(b"application/json", b"text/plain"), (415, "unsupported_media_type")),
        "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n" * 40, line),
        "noise": (bytes(range(255, -1, -1)) * 2 + b"\r\n\r\n", line),
        "no key": (request(None, BODY), (401, "invalid_api_key")),
        "wrong key": (request(key[:-4] + "AAAA", BODY), (401, "invalid_api_key")),
        "other key": (request(f"tg_{CANARY}", BODY), (401, "invalid_api_key")),
        "other path": (get("/v1/" + CANARY, key), (404, "unknown_endpoint")),
        "other method": (head(key, method="DELETE"), (405, "method_not_allowed")),
        "bad labels": (with_line("x-tidegate-labels: personal=perhaps"), (400, "invalid_label")),
        "bad time": (with_line("x-tidegate-timeout-ms: -1"), header),
        "bad key of idempotency": (with_line("Idempotency-Key: " + "k" * 300), header),
        "unknown header of ours": (with_line("x-tidegate-pool: sg-instant"), header),
    }


async def test_requests_that_can_be_read_in_two_ways_are_refused(besieged: Besieged) -> None:
    cases = framed(besieged.key)
    async with besieged.siege():
        answers = dict(zip(cases, await besieged.door.all(raw for raw, _ in cases.values()), strict=True))
    assert {name: one.told for name, one in answers.items() if one.told != cases[name][1]} == {}


async def test_a_request_that_ends_too_early_is_closed_without_an_answer(besieged: Besieged) -> None:
    whole = request(besieged.key, BODY)
    ends = (0, 10, len(whole) - len(BODY) - 2, len(whole) - len(BODY), len(whole) - 1)
    async with besieged.siege():
        answers = await asyncio.gather(*(besieged.door.ask(whole[:end], half_closed=True) for end in ends))
    assert {answer.told for answer in answers} == {(0, "closed")}


def bodies() -> dict[str, tuple[bytes, str]]:
    """Bodies by their names: the bytes, and the code; empty where it is a request."""
    most = 1_000_000
    opened = b'{"model":"' + MODEL.encode() + b'","max_tokens":1,"messages":[{"role":"user","content":"'
    lists = b'{"model":"m","messages":['
    return {
        "lists": (lists + b"[]," * (most // 3) + b"[]]}", "too_many_values"),
        "objects": (lists + b"{}," * (most // 3) + b"{}]}", "too_many_values"),
        "keys": (b"{" + b",".join(b'"%x":1' % number for number in range(most // 9)) + b"}", "too_many_values"),
        "same key": (BODY[:-1] + b',"model":"x"}', "duplicate_key"),
        "same key, spelled otherwise": (BODY[:-1] + b',"mod\\u0065l":"x"}', "duplicate_key"),
        "deep": (b"[" * 40 + b"]" * 40, "too_deep"),
        "deep objects": (b'{"a":' * 30_000, "too_deep"),
        "deeper than any stack": (b"[" * 200_000, "too_many_values"),
        "digits": (BODY[:-1] + b',"seed":' + b"9" * most + b"}", "invalid_value"),
        "fraction": (BODY[:-1] + b',"temperature":0.' + b"9" * most + b"}", ""),
        "escapes": (opened + b"\\u0041" * (most // 6) + b'"}]}', ""),
        "brackets in text": (opened + b"[{" * (most // 2) + b'"}]}', ""),
        "emoji": (opened + "\U0001f600".encode() * (most // 4) + b'"}]}', ""),
        "half a pair": (opened + b'\\ud800"}]}', "invalid_value"),
        "bad UTF-8": (opened + b'\xed\xa0\x80"}]}', "invalid_json"),
        "control character": (opened + b'\x01"}]}', "invalid_json"),
        "byte order mark": (b"\xef\xbb\xbf" + BODY, "invalid_json"),
        "UTF-16": (BODY.decode().encode("utf-16"), "invalid_json"),
        "two values": (BODY + BODY, "invalid_json"),
        "not a number": (BODY[:-1] + b',"temperature":NaN}', "invalid_value"),
        "empty": (b"", "invalid_json"),
        "null": (b"null", "invalid_type"),
        "spaces": (b" " * most + BODY, ""),
        "too many messages": (
            json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "x"}] * 1_025}).encode(),
            "too_many_messages",
        ),
        "too large": (opened + b"x" * (2 * most) + b'"}]}', "body_too_large"),
    }


async def test_bodies_that_cost_a_parser_much_are_refused_at_once(besieged: Besieged) -> None:
    cases = bodies()
    async with besieged.siege():
        raws = [request(besieged.key, data) for data, _ in cases.values()]
        answers = dict(zip(cases, await besieged.door.all(raws * 2, at_once=8), strict=False))
    assert {name: one.code for name, one in answers.items() if one.code != cases[name][1]} == {}


FIELDS = (
    *("stream", "stream_options", "max_tokens", "temperature", "top_p", "seed", "stop", "user", "n", "metadata"),
    *("tools", "logprobs", "logit_bias", "ignore_eos", "min_tokens", "messages", "model", "best_of", "top_k"),
    *("response_format", "frequency_penalty", "__proto__", "service_tier", "prediction", "chat_template"),
)
VALUES = (
    *("null", "true", "0", "-1", "1.5", "1e999", "-0", "9223372036854775808", "9" * 400, '""', '"x"', '"\\u0000"'),
    *('"\\ud800"', "[]", "[1]", '["a"]', "{}", '{"a":1}', "[null]", f'"{"x" * 300}"'),
)


async def test_no_value_of_a_field_is_more_than_a_refusal(besieged: Besieged) -> None:
    async with besieged.siege():
        raws = [request(besieged.key, _with(field, value)) for field in FIELDS for value in VALUES]
        answers = await besieged.door.all(raws, at_once=16)
    assert {answer.status for answer in answers} <= {200, 400, 404}
    assert all(answer.code or answer.whole for answer in answers)


def _with(field: str, value: str) -> bytes:
    fields = {"model": f'"{MODEL}"', "max_tokens": "2", "messages": '[{"role":"user","content":"Hi"}]', field: value}
    return ("{" + ",".join(f'"{name}":{said}' for name, said in fields.items()) + "}").encode()


async def test_requests_sent_ahead_are_answered_in_order_each_with_its_own(besieged: Besieged) -> None:
    parts = (
        (request(besieged.key, BODY), 200),
        (get("/v1/models", besieged.key), 200),
        (get("/v1/models"), 401),
        (get("/nowhere", besieged.key), 404),
        (request(besieged.key, b"[1,2"), 400),
        (request(besieged.key, b'{"a":1}'), 400),
        (get("/healthz"), 200),
    )

    async def one() -> list[Answer]:
        async with besieged.door.connection() as (reader, writer):
            writer.write(b"".join(raw for raw, _ in parts) * 20)
            return [await besieged.door.take(reader) for _ in range(20 * len(parts))]

    async with besieged.siege():
        found = await asyncio.gather(*(one() for _ in range(8)))
    assert {tuple(answer.status for answer in told) for told in found} == {tuple(status for _, status in parts) * 20}
