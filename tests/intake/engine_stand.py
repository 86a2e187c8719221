"""An OpenAI-compatible server that holds its answers until told, remembers prefixes, and says how full it is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from orchestrator.engines.openai import OpenAIEngine, OpenAIEngineSettings
from orchestrator.policy.ids import ReplicaId
from scheduler.intake.engine_replica import EngineReplica
from tests.intake.site_stand import MODEL, POOL, Stand, now_us

PAGE = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0"}} {running}
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0"}} {waiting}
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{{engine="0"}} 0.25
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{{engine="0",kv_cache_size_tokens="8000"}} 1.0
"""


class SharedEngine:
    """The server."""

    def __init__(self, told: bool = True) -> None:
        self.told = told
        """Whether it has a metrics page."""
        self.up = True
        self.others = 0
        """Requests of somebody else that it runs."""
        self.running = 0
        self.texts: list[str] = []
        """The prompts that came, in order."""
        self.go = asyncio.Event()
        """Answers end once this is set."""
        self.go.set()
        self.port = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[SharedEngine]:
        """Listen on loopback."""
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(app, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        try:
            yield self
        finally:
            self.go.set()
            await runner.cleanup()

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "served"}]}) if self.up else web.Response(status=503)

    async def _metrics(self, _: web.Request) -> web.Response:
        if not self.told:
            return web.Response(status=404)
        return web.Response(text=PAGE.format(running=self.running + self.others, waiting=0))

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        text = "".join(message["content"] for message in body["messages"])
        held = any(text[:1_024] == before[:1_024] for before in self.texts)
        self.texts.append(text)
        self.running += 1
        tokens = len(text) // 4
        details = {"cached_tokens": tokens // 2 if held else 0}
        usage = {"prompt_tokens": tokens, "completion_tokens": 2, "prompt_tokens_details": details}
        try:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await self._say(response, {"choices": [{"index": 0, "delta": {"content": "Good"}}]})
            await self.go.wait()
            last = {"index": 0, "delta": {"content": " day"}, "finish_reason": "stop"}
            await self._say(response, {"choices": [last]})
            await self._say(response, {"choices": [], "usage": usage})
            await response.write(b"data: [DONE]\n\n")
        finally:
            self.running -= 1
        return response

    async def _say(self, response: web.StreamResponse, chunk: dict[str, object]) -> None:
        await response.write(f"data: {json.dumps(chunk)}\n\n".encode())


@asynccontextmanager
async def replica_of(stand: Stand, engine: SharedEngine, name: str, slots: int) -> AsyncIterator[EngineReplica]:
    """The engine as a replica of the stand's pool, probed as a scheduler without Ray does."""
    client = OpenAIEngine(OpenAIEngineSettings(f"http://127.0.0.1:{engine.port}", "served", None))
    replica = EngineReplica(stand.site, POOL, ReplicaId(name), MODEL, slots, client, now_us)
    probing = asyncio.create_task(replica.run())
    try:
        yield replica
    finally:
        probing.cancel()
        await asyncio.gather(probing, return_exceptions=True)
        await replica.close()
