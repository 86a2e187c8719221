"""What an edge that stops says of an answer that is under way: the same as the record that it leaves of it."""

from __future__ import annotations

import http.client
import json
import signal
from pathlib import Path

import pytest

from tests.bundles.sides import MODEL
from tests.front.room import CHAT, chat_body
from tests.idempotency.lone_edge import API_KEY, TIMEOUT_S, LoneEdge, answer, lone_edge


def ask(edge: LoneEdge, method: str, path: str, body: bytes | None = None) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", edge.port, timeout=TIMEOUT_S)
    try:
        headers = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
        connection.request(method, path, body, headers if body else {})
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize("processes", [1, 2])
def test_an_edge_that_gives_notice_serves_whoever_comes_before_it_is_over(tmp_path: Path, processes: int) -> None:
    more = "drain_notice_ms: 3000\n" + (f"processes: {processes}\n" if processes > 1 else "")
    with lone_edge(tmp_path, more) as edge:
        edge.engine.may_answer.set()
        assert edge.process is not None
        edge.process.send_signal(signal.SIGTERM)
        while ask(edge, "GET", "/readyz") == 200:
            pass
        assert ask(edge, "POST", CHAT, chat_body(model=MODEL)) == 200
        assert edge.process.wait(TIMEOUT_S) == 0


def test_a_stream_that_a_stopping_edge_ends_says_what_was_used_as_its_record_does(tmp_path: Path) -> None:
    with lone_edge(tmp_path) as edge:
        edge.engine.early_bytes = answer().index(b"\n\n") + 2
        connection = http.client.HTTPConnection("127.0.0.1", edge.port, timeout=TIMEOUT_S)
        headers = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
        connection.request("POST", CHAT, chat_body(stream=True, model=MODEL), headers)
        reply = connection.getresponse()
        assert b"Yes" in reply.readline() + reply.readline() + reply.readline()
        assert edge.stop(signal.SIGTERM) == 0
        *_, last = reply.read().decode().strip().split("\n\n")
        error = json.loads(last.removeprefix("data: "))["error"]
        connection.close()
        (record,) = edge.records("usage")
    assert error["code"] == "draining"
    assert error["usage"] == {"completion_tokens": 1}
    assert error["resume"]["reason"] == "cause"
    assert record["counts"]["edge"]["delivered"] == error["usage"]["completion_tokens"]
