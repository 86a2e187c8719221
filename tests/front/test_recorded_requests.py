"""Requests that a generator made of `/openapi.json` (`make fuzz ARGS=openapi`), sent again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from node_agent.front.document import document
from tests.front.room import ACME, done, request_bytes, room_in, saying, tokens

RECORDED = Path(__file__).parent / "recorded_requests.jsonl"
DOCUMENT: dict[str, Any] = document()
NOBODY = {"401", "404", "405"}
"""What an endpoint, a method or a model that is not there is told."""


def described(method: str, path: str) -> dict[str, Any] | None:
    """Return the responses of an operation, or None where the document has none."""
    found = DOCUMENT["paths"].get(path)
    if found is None and path.startswith("/v1/models/"):
        found = DOCUMENT["paths"]["/v1/models/{model}"]
    responses: dict[str, Any] | None = (found or {}).get(method.lower(), {}).get("responses")
    return responses


async def test_recorded_requests_are_answered_as_the_document_says(tmp_path: Path) -> None:
    faults: list[str] = []
    statuses: set[int] = set()
    checks: dict[str, Draft202012Validator] = {}
    async with room_in(tmp_path, saying(tokens("Good"), done()), body_bytes_max=1 << 20) as room:
        for line in RECORDED.read_text(encoding="utf-8").splitlines():
            asked = json.loads(line)
            body = asked["body"].encode("utf-8", "surrogatepass")
            # The key of the recording was not kept.
            headers = [(n, v if n != "authorization" or v else f"Bearer {ACME.text()}") for n, v in asked["headers"]]
            usual = [("Host", "edge.example"), ("Connection", "close"), ("Content-Length", str(len(body)))]
            reply = await room.raw(request_bytes(asked["method"], asked["path"], [*usual, *headers], body))
            statuses.add(reply.status)
            responses = described(asked["method"], asked["path"].partition("?")[0])
            told = (responses or {}).get(str(reply.status))
            if told is None:
                if responses is not None or str(reply.status) not in NOBODY | {"400"}:
                    faults.append(f"{reply.status}: {line[:200]}")
                continue
            kind = (reply.header("content-type") or "").partition(";")[0]
            schemas = {name.partition(";")[0]: content["schema"] for name, content in told["content"].items()}
            if kind not in schemas or reply.status >= 500:
                faults.append(f"{reply.status} {kind}: {line[:200]}")
            elif kind == "application/json":
                name = schemas[kind]["$ref"]
                check = checks.setdefault(
                    name, Draft202012Validator({"$ref": name, "components": DOCUMENT["components"]})
                )
                if not check.is_valid(reply.json()):
                    faults.append(f"{reply.status} {name}: {line[:200]}")
    assert not faults, "\n".join(faults)
    assert {200, 400, 401, 404, 405, 415} <= statuses
