"""What is refused before the gate is asked: framing, headers, keys, bodies and fields. Nothing of it is repeated."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.bundles.revocations import Revoked
from orchestrator.policy.ids import EdgeId, KeyId, TenantId, parse_api_key
from tests.front.room import (
    ACME,
    ACME_SECOND,
    BETA,
    CHAT,
    ELSEWHERE,
    OTHER_MODEL,
    Key,
    Room,
    chat_body,
    done,
    request_bytes,
    room_in,
    saying,
)
from tests.values import replace

BODY = chat_body()
KEY = ("Authorization", f"Bearer {ACME.text()}")
JSON = ("Content-Type", "application/json")
HOST = ("Host", "edge.example")
CLOSE = ("Connection", "close")
LENGTH = ("Content-Length", str(len(BODY)))
USUAL = (HOST, CLOSE, KEY, JSON, LENGTH)
CHUNKED = ("Transfer-Encoding", "chunked")


@dataclass(frozen=True)
class Case:
    """One bad request, and what it must be told."""

    what: str
    status: int
    code: str
    param: str | None = None
    headers: Sequence[tuple[str, str]] = USUAL
    body: bytes = BODY
    method: str = "POST"
    path: str = CHAT


def without(*dropped: tuple[str, str]) -> list[tuple[str, str]]:
    return [header for header in USUAL if header not in dropped]


def bad_body(what: str, body: bytes, code: str, param: str | None = None) -> Case:
    headers = [*without(LENGTH), ("Content-Length", str(len(body)))]
    return Case(what, 400, code, param, headers, body)


def head(what: str, code: str, param: str | None, *headers: tuple[str, str], status: int = 400) -> Case:
    return Case(what, status, code, param, headers)


PATHS = [
    Case("embeddings", 404, "unknown_endpoint", path="/v1/embeddings"),
    Case("responses", 404, "unknown_endpoint", path="/v1/responses"),
    Case("a slash more", 404, "unknown_endpoint", path=CHAT + "/"),
    Case("capitals", 404, "unknown_endpoint", path="/V1/chat/completions"),
    Case("an escape", 404, "unknown_endpoint", path="/v1/chat/c%6fmpletions"),
    Case("an escaped slash", 404, "unknown_endpoint", path="/v1/chat%2Fcompletions"),
    Case("dots", 404, "unknown_endpoint", path="/v1/x/../chat/completions"),
    Case("two slashes", 404, "unknown_endpoint", path="//v1/chat/completions"),
    Case("no model", 404, "unknown_endpoint", path="/v1/models/", method="GET"),
    Case("a query", 400, "invalid_value", "query", path=CHAT + "?api_base=http://evil.example"),
    Case("GET", 405, "method_not_allowed", method="GET"),
    Case("PUT", 405, "method_not_allowed", method="PUT"),
    Case("OPTIONS", 405, "method_not_allowed", method="OPTIONS"),
    Case("TRACE", 405, "method_not_allowed", method="TRACE"),
    Case("a made-up method", 405, "method_not_allowed", method="PROPFIND"),
    Case("POST to models", 405, "method_not_allowed", path="/v1/models"),
    Case("POST to health", 405, "method_not_allowed", path="/healthz"),
    Case("POST to vLLM's health", 405, "method_not_allowed", path="/health"),
    Case("OPTIONS of the server", 400, "invalid_request_line", method="OPTIONS", path="*"),
]
FRAMING = [
    head("no host", "invalid_header", "host", *without(HOST)),
    head("two hosts", "invalid_header", "host", *USUAL, HOST),
    head("an empty host", "invalid_header", "host", ("Host", ""), *without(HOST)),
    head("a host with a path", "invalid_header", "host", ("Host", "a/v1"), *without(HOST)),
    head(
        "gzip in chunks",
        "invalid_header",
        "transfer-encoding",
        *without(LENGTH),
        ("Transfer-Encoding", "gzip, chunked"),
    ),
    head("two codings", "invalid_header", "transfer-encoding", *without(LENGTH), CHUNKED, CHUNKED),
    head("gzip", "unsupported_media_type", "content-encoding", *USUAL, ("Content-Encoding", "gzip"), status=415),
    head(
        "two encodings",
        "unsupported_media_type",
        "content-encoding",
        *USUAL,
        ("Content-Encoding", "identity"),
        ("Content-Encoding", "identity"),
        status=415,
    ),
]
KEYS = [
    head("no key", "invalid_api_key", None, *without(KEY), status=401),
    head("the key twice", "invalid_api_key", None, *USUAL, KEY, status=401),
    head("two keys", "invalid_api_key", None, *USUAL, ("Authorization", f"Bearer {BETA.text()}"), status=401),
    *(
        head(f"as {scheme!r}", "invalid_api_key", None, *without(KEY), ("Authorization", scheme), status=401)
        for scheme in (
            "",
            "Bearer",
            f"Basic {ACME.text()}",
            ACME.text(),
            f"Bearer  {ACME.text()}",
            f"Bearer {ACME.text()}x",
            f"Bearer {ACME.text()[:-2]}",
            "Bearer tg_acmekey1_",
            "Bearer sk-abc",
            f"Bearer {ACME.text()}, {ACME.text()}",
            "Bearer tg_acmekey1_" + "é" * 43,
        )
    ),
    head(
        "an unknown key",
        "invalid_api_key",
        None,
        *without(KEY),
        ("Authorization", f"Bearer {Key('nobodykey1').text()}"),
        status=401,
    ),
    head(
        "a wrong secret",
        "invalid_api_key",
        None,
        *without(KEY),
        ("Authorization", f"Bearer {Key(ACME.id).text()}"),
        status=401,
    ),
    head(
        "another tenant's secret",
        "invalid_api_key",
        None,
        *without(KEY),
        ("Authorization", f"Bearer {Key(ACME.id, BETA.secret).text()}"),
        status=401,
    ),
    head(
        "a tenant of another edge",
        "not_entitled",
        None,
        *without(KEY),
        ("Authorization", f"Bearer {ELSEWHERE.text()}"),
        status=403,
    ),
]
OURS = [
    head(name, "invalid_header", name.lower(), *USUAL, (name, "x"))
    for name in (
        "x-tidegate-tenant",
        "X-Tidegate-Upstream",
        "x-tidegate-pool",
        "x-tidegate-",
        "x_tidegate_salt",
        "x-tidegate-labels-2",
        "x_tidegate_labels",
    )
]
CONTENT = [
    head("no type", "unsupported_media_type", "content-type", *without(JSON), status=415),
    head("two types", "unsupported_media_type", "content-type", *USUAL, JSON, status=415),
    *(
        head(kind, "unsupported_media_type", "content-type", *without(JSON), ("Content-Type", kind), status=415)
        for kind in ("text/plain", "application/jsonx", "application/json; charset=utf-16", "multipart/form-data", "")
    ),
    head("a length beyond the limit", "body_too_large", None, *without(LENGTH), ("Content-Length", "4097"), status=413),
    head("ten gigabytes", "body_too_large", None, *without(LENGTH), ("Content-Length", "10000000000"), status=413),
    Case("no body", 400, "invalid_json", None, without(LENGTH), b""),
]
BODIES = [
    bad_body("not JSON", b"{", "invalid_json"),
    bad_body("two values", b"{}{}", "invalid_json"),
    bad_body("a mark", b"\xef\xbb\xbf" + BODY, "invalid_json"),
    bad_body("UTF-16", BODY.decode().encode("utf-16"), "invalid_json"),
    bad_body("a list", b"[]", "invalid_type"),
    bad_body("two models", BODY.replace(b"{", b'{"model": "other", ', 1), "duplicate_key", "model"),
    bad_body("depth", b'{"model":' + b"[" * 400 + b"]" * 400 + b"}", "too_deep"),
    bad_body("NaN", BODY.replace(b"{", b'{"temperature": NaN, ', 1), "invalid_value", "temperature"),
    bad_body("no messages", chat_body(messages=[]), "invalid_value", "messages"),
    bad_body("too many messages", chat_body(messages=[1] * 1025), "too_many_messages", "messages"),
    bad_body("two answers", chat_body(n=2), "unsupported_value", "n"),
    bad_body("a million answers", chat_body(n=1_000_000), "unsupported_value", "n"),
    bad_body("many tokens", chat_body(max_tokens=1001), "invalid_value", "max_tokens"),
    bad_body("less than no token", chat_body(max_tokens=-1), "invalid_value", "max_tokens"),
    bad_body("an upstream", chat_body(api_base="http://evil.example"), "unknown_field", "api_base"),
    bad_body("a template", chat_body(chat_template="{{x}}"), "unknown_field", "chat_template"),
    bad_body("text for a number", chat_body(temperature="hot"), "invalid_type", "temperature"),
    bad_body("heat", chat_body(temperature=3), "invalid_value", "temperature"),
    bad_body("five stops", chat_body(stop=list("abcde")), "invalid_value", "stop"),
    bad_body("tools", chat_body(tools=[{"type": "function"}]), "capability_not_offered"),
    bad_body("a schema", chat_body(response_format={"type": "json_object"}), "capability_not_offered"),
    replace(bad_body("an unknown model", chat_body(model="nowhere"), "model_not_found", "model"), status=404),
    replace(
        bad_body("a model of another tenant", chat_body(model=OTHER_MODEL), "model_not_found", "model"),
        status=404,
        headers=[
            HOST,
            CLOSE,
            JSON,
            ("Authorization", f"Bearer {BETA.text()}"),
            ("Content-Length", str(len(chat_body(model=OTHER_MODEL)))),
        ],
    ),
]
LABELS = [
    head(f"labels {value!r}", "invalid_label", "x-tidegate-labels", *USUAL, ("x-tidegate-labels", value))
    for value in (
        "personal=nobody",
        "colour=red",
        "personal=none, personal=none",
        'origin="XX"',
        "grade=general;x=1",
        "personal",
        "é",
        "personal=none," * 60,
    )
]
TWO_LABELS = head(
    "two label headers",
    "invalid_header",
    "x-tidegate-labels",
    *USUAL,
    ("x-tidegate-labels", "personal=none"),
    ("x-tidegate-labels", "grade=public"),
)
CASES = [*PATHS, *FRAMING, *KEYS, *OURS, *CONTENT, *BODIES, *LABELS, TWO_LABELS]


async def test_bad_input_is_refused_and_the_gate_is_not_asked(tmp_path: Path) -> None:
    faults: list[str] = []
    async with room_in(tmp_path, saying(done())) as room:
        for case in CASES:
            reply = await room.raw(request_bytes(case.method, case.path, case.headers, case.body))
            error = reply.error()
            found = (reply.status, error["code"], error["param"])
            if found != (case.status, case.code, case.param):
                faults.append(f"{case.what}: {found}")
            if reply.header("x-should-retry") != "false" or reply.header("retry-after"):
                faults.append(f"{case.what}: says to retry")
            if reply.header("x-request-id") != error["request_id"] or reply.rest:
                faults.append(f"{case.what}: {reply.headers} {reply.rest!r}")
            if (reply.header("www-authenticate") == "Bearer") != (case.status == 401):
                faults.append(f"{case.what}: www-authenticate")
        assert room.gate.asked == []
        # The positive control: the same words are let through when nothing is wrong with them.
        assert (await room.raw(request_bytes("POST", CHAT, USUAL, BODY))).status == 200
    assert not faults, "\n".join(faults)


async def test_a_wrong_method_is_told_the_right_one(tmp_path: Path) -> None:
    async with room_in(tmp_path, saying(done())) as room:
        assert (await room.call("GET", CHAT)).header("allow") == "POST"
        assert (await room.call("POST", "/v1/models")).header("allow") == "GET, HEAD"
        head_of_chat = await room.call("HEAD", CHAT)
        assert (head_of_chat.status, head_of_chat.header("allow"), head_of_chat.body) == (405, "POST", b"")
        assert (await room.call("CONNECT", "evil.example:443")).status == 400


async def test_a_length_and_a_coding_together_are_not_read_at_all(tmp_path: Path) -> None:
    smuggled = b"0\r\n\r\n" + request_bytes("GET", "/v1/models", (HOST, KEY))
    async with room_in(tmp_path, saying(done())) as room:
        for pair in ((LENGTH, CHUNKED), (CHUNKED, LENGTH)):
            reply = await room.raw(request_bytes("POST", CHAT, (HOST, KEY, JSON, *pair), smuggled))
            assert (reply.status, reply.error()["code"]) == (400, "invalid_header")
            assert (reply.header("connection"), reply.rest) == ("close", b"")
        assert room.gate.asked == []


@pytest.mark.parametrize(
    "chunks", [b"zz\r\nabc\r\n0\r\n\r\n", b"3\r\nabcde\r\n0\r\n\r\n", b"-1\r\n", b"ffffffffffffffffff\r\n"]
)
async def test_broken_chunks_are_refused_and_the_connection_ends(tmp_path: Path, chunks: bytes) -> None:
    async with room_in(tmp_path, saying(done())) as room:
        reply = await room.raw(request_bytes("POST", CHAT, (HOST, KEY, JSON, CHUNKED), chunks))
        assert (reply.status, reply.error()["code"]) == (400, "body_incomplete")
        assert room.gate.asked == []


async def test_a_body_without_end_is_cut_at_the_limit(tmp_path: Path) -> None:
    async with room_in(tmp_path, saying(done())) as room:
        endless = (b"400\r\n" + b" " * 1024 + b"\r\n") * 100
        reply = await room.raw(request_bytes("POST", CHAT, (HOST, KEY, JSON, CHUNKED), endless))
        assert (reply.status, reply.error()["code"]) == (413, "body_too_large")
        assert (reply.header("connection"), reply.rest) == ("close", b"")
        assert room.gate.asked == []


async def test_a_body_in_chunks_that_is_here_whole_and_too_large_is_refused_unread(tmp_path: Path) -> None:
    async with room_in(tmp_path, saying(done())) as room:
        whole = b"%x\r\n%b\r\n0\r\n\r\n" % (5_000, b"x" * 5_000)
        reply = await room.raw(request_bytes("POST", CHAT, (HOST, KEY, JSON, CHUNKED), whole))
        assert (reply.status, reply.error()["code"]) == (413, "body_too_large")
        assert (reply.header("connection"), reply.rest) == ("close", b"")
        assert room.gate.asked == []


async def test_a_body_that_does_not_come_is_waited_for_within_a_bound(tmp_path: Path) -> None:
    async with room_in(tmp_path, saying(done())) as room:
        began_s = asyncio.get_running_loop().time()
        reply = await room.raw(request_bytes("POST", CHAT, (HOST, KEY, JSON, LENGTH), BODY[:-1]))
        assert asyncio.get_running_loop().time() - began_s < 2
        assert (reply.status, reply.error()["code"]) == (408, "body_timeout")
        assert (reply.header("connection"), reply.header("x-should-retry")) == ("close", "false")


async def test_a_refused_head_is_told_before_the_body_is_asked_for(tmp_path: Path) -> None:
    expecting = ("Expect", "100-continue")
    async with room_in(tmp_path, saying(done())) as room:
        refused = await room.raw(request_bytes("POST", CHAT, (HOST, JSON, LENGTH, expecting, CLOSE)))
        assert refused.status == 401
        large = await room.raw(request_bytes("POST", CHAT, (HOST, KEY, JSON, ("Content-Length", "9999"), expecting)))
        assert (large.status, large.header("connection")) == (413, "close")


async def test_a_connection_that_says_nothing_is_dropped(tmp_path: Path) -> None:
    async with room_in(tmp_path, saying(done()), head_timeout_ms=200) as room:
        reader, writer = await asyncio.open_connection("127.0.0.1", room.server.port)
        slow, slow_writer = await asyncio.open_connection("127.0.0.1", room.server.port)
        slow_writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: e\r\n")
        async with asyncio.timeout(2):
            assert await reader.read() == b""
            await slow.read()
        for one in (writer, slow_writer):
            one.close()
            await one.wait_closed()


async def test_a_revoked_key_and_a_revoked_tenant_are_strangers(tmp_path: Path) -> None:
    async with room_in(tmp_path, saying(done())) as room:
        assert room.bundle is not None
        held = room.bundle
        room.bundle = replace(held, revoked=Revoked(keys=frozenset({KeyId(ACME.id)})))
        assert (await room.call(body=BODY)).error()["code"] == "invalid_api_key"
        assert (await room.call(body=BODY, key=ACME_SECOND)).status == 200
        room.bundle = replace(held, revoked=Revoked(tenants=frozenset({TenantId("acme")})))
        assert (await room.call(body=BODY, key=ACME_SECOND)).status == 401
        assert (await room.call(body=BODY, key=BETA)).status == 200
        room.bundle = replace(held, revoked=Revoked(edges=frozenset({EdgeId("sg-edge")})))
        assert (await room.call("GET", "/readyz", key=None)).json()["reason"] == "this edge is revoked"


async def test_an_unknown_key_costs_the_same_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []

    def watched(expected: str, given: str) -> bool:
        compared.append((expected, given))
        return expected == given

    monkeypatch.setattr("node_agent.front.tenants.hmac.compare_digest", watched)
    async with room_in(tmp_path, saying(done())) as room:
        for key in (ACME, Key("nobodykey1"), Key(ACME.id)):
            await room.call(body=BODY, key=key)
            parsed = parse_api_key(key.text())
            assert parsed is not None
            assert compared[-1][1] == parsed[1]
    assert len(compared) == 3
    assert {len(expected) for expected, _ in compared} == {64}


async def test_everything_but_the_open_endpoints_asks_for_a_key(tmp_path: Path) -> None:
    async def status(room: Room, method: str, path: str) -> int:
        return (await room.call(method, path, key=None)).status

    async with room_in(tmp_path, saying(done())) as room:
        assert [await status(room, "GET", path) for path in ("/healthz", "/health", "/readyz", "/metrics")] == [200] * 4
        assert [await status(room, "GET", path) for path in ("/v1/models", "/v1/models/demo")] == [401, 401]
        assert await status(room, "POST", CHAT) == 401
        shown = await room.call("GET", "/metrics", key=None)
        assert (shown.header("content-type") or "").startswith("text/plain; version=0.0.4")
        assert b'tidegate_refusals_total{code="invalid_api_key"} 3.0' in shown.body
