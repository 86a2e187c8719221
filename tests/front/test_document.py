"""`/openapi.json` describes the edge that answers: its endpoints, fields, headers, codes and shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from node_agent.front import app, endpoints
from node_agent.front.completions import LOADERS
from node_agent.front.document import BODIES, REQUEST_HEADERS, document
from node_agent.front.http import OURS
from orchestrator.wire.catalogue import CATALOGUE
from tests.bundles.sides import MODEL
from tests.front.room import CHAT, Reply, Room, broken, chat_body, done, room_in, saying, tokens

DOCUMENT: dict[str, Any] = document()
HELLO = saying(tokens("Hello"), done())
RAW = json.dumps({"model": MODEL, "prompt": "x"}).encode()


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]})


async def test_it_is_served_to_everybody_and_is_what_is_made(tmp_path: Path) -> None:
    async with room_in(tmp_path, HELLO) as room:
        reply = await room.call("GET", "/openapi.json", key=None)
    assert (reply.status, reply.header("content-type")) == (200, "application/json")
    assert reply.json() == DOCUMENT
    assert reply.json()["openapi"].startswith("3.1.")


async def test_every_endpoint_that_answers_is_in_it_and_no_other(tmp_path: Path) -> None:
    assert {path: [*found] for path, found in DOCUMENT["paths"].items()} == {
        path: [method.lower() for method in methods] for path, methods in endpoints.METHODS.items()
    }
    # Whatever the front compares a path with is an endpoint of the table.
    paths = {value for name, value in vars(app).items() if name.isupper() and str(value).startswith("/")}
    assert paths | LOADERS.keys() <= endpoints.METHODS.keys()
    async with room_in(tmp_path, HELLO) as room:
        for path, methods in endpoints.METHODS.items():
            body = {CHAT: chat_body(), endpoints.COMPLETIONS: RAW}.get(path)
            key = {"key": None} if path in endpoints.OPEN else {}
            for method in methods:
                reply = await room.call(
                    method, path.replace("{model}", MODEL), body=body, **key  # type: ignore[arg-type]
                )
                assert reply.status == 200, path
            for wrong in {"GET", "HEAD", "POST"} - {*methods}:
                refused = await room.call(wrong, path.replace("{model}", MODEL))
                assert (refused.status, refused.header("allow")) == (405, ", ".join(methods)), path


def test_every_operation_has_a_name_of_its_own() -> None:
    names = [one["operationId"] for found in DOCUMENT["paths"].values() for one in found.values()]
    assert len(names) == len(set(names))
    for found in DOCUMENT["paths"].values():
        assert "head" not in found or all("content" not in one for one in found["head"]["responses"].values())


def test_every_field_that_is_read_is_in_it_and_every_other_is_refused_by_it() -> None:
    assert BODIES.keys() == LOADERS.keys()
    for path, type_ in BODIES.items():
        content = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]
        assert content == {"application/json": {"schema": {"$ref": f"#/components/schemas/{type_.__name__}"}}}
        schema = DOCUMENT["components"]["schemas"][type_.__name__]
        assert set(schema["properties"]) == {field.encode_name for field in msgspec.structs.fields(type_)}
        assert schema["additionalProperties"] is False
        assert not validator(type_.__name__).is_valid({"api_base": "http://evil.example"})


def test_every_header_of_ours_that_is_taken_is_in_it() -> None:
    assert REQUEST_HEADERS.keys() >= OURS
    for path in BODIES:
        told = [parameter["name"] for parameter in DOCUMENT["paths"][path]["post"]["parameters"]]
        assert told == [*REQUEST_HEADERS]


def test_every_code_and_status_of_the_catalogue_is_in_it() -> None:
    error = DOCUMENT["components"]["schemas"]["Error"]["properties"]["error"]
    assert set(error["properties"]["code"]["enum"]) == set(CATALOGUE)
    for path, methods in endpoints.METHODS.items():
        for method in methods:
            told = DOCUMENT["paths"][path][method.lower()]["responses"]
            assert {entry.http for entry in CATALOGUE.values()} - {499} <= {int(status) for status in told}


def test_every_reference_in_it_leads_somewhere() -> None:
    text = json.dumps(DOCUMENT)
    for name in DOCUMENT["components"]["schemas"]:
        validator(name).check_schema(DOCUMENT["components"]["schemas"][name])
    named = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert named <= DOCUMENT["components"]["schemas"].keys()


@pytest.mark.parametrize(
    ("path", "body", "whole", "chunk"),
    [
        (CHAT, json.loads(chat_body()), "ChatCompletion", "ChatCompletionChunk"),
        (endpoints.COMPLETIONS, json.loads(RAW), "TextCompletion", "TextCompletion"),
    ],
)
async def test_answers_have_the_shapes_that_it_tells(
    tmp_path: Path, path: str, body: dict[str, Any], whole: str, chunk: str
) -> None:
    async def ask(room: Room, **fields: Any) -> Reply:
        return await room.call(path=path, body=json.dumps(body | fields).encode())

    async with room_in(tmp_path, HELLO) as room:
        validator(whole).validate((await ask(room)).json())
        for continuous in (False, True):
            options = {"include_usage": True, "continuous_usage_stats": continuous}
            *events, last = (await ask(room, stream=True, stream_options=options)).events()
            assert last == "[DONE]"
            for event in events:
                validator(chunk).validate(json.loads(event))
        refused = await ask(room, n=2)
        validator("Error").validate(refused.json())
        for name in ("ModelList", "Model"):
            found = await room.call("GET", "/v1/models" + ("" if name == "ModelList" else f"/{MODEL}"))
            validator(name).validate(found.json())
        room.gate.plan = saying(tokens("a"), broken())
        validator("Error").validate(json.loads((await ask(room, stream=True)).events()[-1]))
