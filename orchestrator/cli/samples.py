"""The five requests that `tidegate up` sends when the house stands: what is asked, what must happen, and why it did.

They are sent with the official `openai` client, as a tenant would. The account of each decision is read from the
edge's own evidence.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai

from orchestrator.cli.evidence import find
from orchestrator.ledger.money import Currency, Money

MODEL = "smollm2-135m-instruct"
EVIDENCE_DEADLINE_S = 5.0
ANSWER_DEADLINE_S = 120.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Caller:
    """A tenant at one edge."""

    town: str
    url: str
    key: str = field(repr=False)
    spool: Path

    def client(self) -> openai.AsyncOpenAI:
        """Return a client that does not try again by itself, so that one request is one request."""
        return openai.AsyncOpenAI(base_url=self.url, api_key=self.key, max_retries=0, timeout=ANSWER_DEADLINE_S)


@dataclass(slots=True)
class Outcome:
    """What came of one request."""

    status: int
    text: str = ""
    finish_reason: str | None = None
    pool: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    first_token_ms: int | None = None
    usage: Any = None
    error: dict[str, Any] = field(default_factory=dict)
    decision: dict[str, Any] | None = None


async def ask(
    caller: Caller,
    say: Say,
    question: str,
    labels: str | None = None,
    max_tokens: int = 48,
    started: asyncio.Event | None = None,
    shown: bool = True,
) -> Outcome:
    """Send one streamed request, show the answer as it comes, and return what came of it."""
    headers = {} if labels is None else {"x-tidegate-labels": labels}
    begun = time.monotonic()
    async with caller.client() as client:
        try:
            async with client.chat.completions.with_streaming_response.create(
                model=MODEL,
                messages=[{"role": "user", "content": question}],
                max_tokens=max_tokens,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
                extra_headers=headers,
            ) as response:
                outcome = Outcome(200, pool=response.headers.get("x-tidegate-pool"), headers=dict(response.headers))
                await _read(await response.parse(), outcome, begun, say if shown else _silent, started)
        except openai.APIStatusError as error:
            body = error.body if isinstance(error.body, dict) else {}
            outcome = Outcome(error.status_code, headers=dict(error.response.headers), error=body)
    await _account(caller, outcome)
    return outcome


async def _read(stream: Any, outcome: Outcome, begun: float, say: Say, started: asyncio.Event | None) -> None:
    line = ""
    async for chunk in stream:
        if chunk.usage is not None:
            outcome.usage = chunk.usage
        for choice in chunk.choices:
            outcome.finish_reason = choice.finish_reason or outcome.finish_reason
            piece = choice.delta.content or ""
            if piece and outcome.first_token_ms is None:
                outcome.first_token_ms = int((time.monotonic() - begun) * 1000)
                if started is not None:
                    started.set()
            outcome.text += piece
            line += piece
            *whole, line = line.split("\n")
            for finished in whole:
                say(f"    | {finished}")
    if line:
        say(f"    | {line}")


async def _account(caller: Caller, outcome: Outcome) -> None:
    """Find the decision of this request in the edge's evidence."""
    request = outcome.headers.get("x-request-id", "")
    end_at = time.monotonic() + EVIDENCE_DEADLINE_S
    while outcome.decision is None and time.monotonic() < end_at:
        outcome.decision = await asyncio.to_thread(find, caller.spool, "decision", "request", request)
        if outcome.decision is None:
            await asyncio.sleep(0.05)


async def usage_of(caller: Caller, outcome: Outcome) -> dict[str, Any] | None:
    """Return the usage record of a finished request."""
    request = outcome.headers.get("x-request-id", "")
    end_at = time.monotonic() + EVIDENCE_DEADLINE_S
    while time.monotonic() < end_at:
        found = await asyncio.to_thread(find, caller.spool, "usage", "request", request)
        if found is not None:
            return found
        await asyncio.sleep(0.05)
    return None


async def show(caller: Caller, outcome: Outcome, say: Say) -> None:
    """Say where a request ran, why there and not elsewhere, and what it cost."""
    if outcome.status == 200:
        where = outcome.headers.get("x-tidegate-jurisdiction", "?")
        say(f"    ran in pool {outcome.pool} ({where}), decision {outcome.headers.get('x-tidegate-decision')}")
    else:
        say(f"    HTTP {outcome.status} {outcome.error.get('code')}: {outcome.error.get('message')}")
        if "retry-after" in outcome.headers:
            say(f"    Retry-After: {outcome.headers['retry-after']} s")
    if outcome.decision is not None:
        for candidate in outcome.decision["placement"]["candidates"]:
            say(f"    {candidate_line(candidate, outcome.decision['pool'])}")
    if outcome.status == 200:
        record = await usage_of(caller, outcome)
        counts = {} if record is None else record["counts"]
        price = "?" if record is None or record["price"] is None else _price(record["price"])
        prompt = counts.get("pool", {}).get("prompt", "?")
        delivered = counts.get("edge", {}).get("delivered", "?")
        say(f"    first token {outcome.first_token_ms} ms, tokens {prompt} in and {delivered} out, price {price}")


def candidate_line(candidate: Mapping[str, Any], chosen: str | None) -> str:
    """Return one line that says why a pool was chosen or not. Pure."""
    name = f"{candidate['pool']:<13}"
    if candidate["terms"] is not None:
        terms = candidate["terms"]
        mark = "chosen" if candidate["pool"] == chosen else "dearer"
        parts = ", ".join(
            f"{part} {_micro(terms[part + '_pico'])}" for part in ("tokens", "egress", "time", "late")
        )
        rtt = f"rtt {terms['rtt_us'] // 1000} ms{'' if terms['rtt_measured'] else ' (not measured)'}"
        return f"{name} {mark:<7} J = {_micro(terms['total_pico'])} micro-units ({parts}; {rtt})"
    if candidate["drop"] == "not_permitted":
        reasons = candidate["verdict"]["reasons"]
        rules = ", ".join(dict.fromkeys(f"{r['rule']}" for r in reasons))
        sentence = reasons[0]["sentence"] if reasons else ""
        return f"{name} refused by {rules}: {sentence}"
    rules = ", ".join(candidate["verdict"]["rules"])
    return f"{name} permitted by {rules}, but {candidate['drop']}"


def _micro(pico: str) -> str:
    return f"{int(pico) / 1_000_000:.1f}"


def _price(price: Mapping[str, str]) -> str:
    return Money(int(price["amount_pico"]), Currency(price["currency"])).text()


def _silent(_: str) -> None:
    """Say nothing."""
