"""The scenario of a lost Ray head, on a house of its own: embedded engines on Ray, as `tidegate up` starts them.

The heads of both sites are killed under load. Replicas that live must finish what they have and take more, with the
same words as before. When a site's cluster is given up, a new one is started, and everything must come back.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import openai
import psutil

from orchestrator.cli.house import House, choose_ports
from orchestrator.cli.processes import ProcessSpec, Supervisor
from orchestrator.cli.samples import Caller, ask
from orchestrator.cli.up import Options, Up, etcd_binary, specs
from scheduler.pools.prepare import default_cache, gguf_path, model_directory
from tests.chaos.report import Result
from tests.values import replace

NAME = "ray-head"
ABOUT = "SIGKILL of both sites' Ray heads under load; live replicas serve on; then new clusters (a house of its own)"
SITES = ("guizhou", "shanghai")
OPTIONS = Options({"guizhou": 60, "shanghai": 40}, None, once=True)
PROMPTS = ("Name one river in Europe.", "What is the capital of Japan?", "Count from one to ten.")
TOKENS = 12
WORKERS = 3
CALM_S = 3.0
HEADLESS_S = 20.0
LINGER_S = 30.0
"""How long a cluster's replicas outlive its head here; longer than they are asked without one."""
GIVEN_UP_S = 60.0
START_MS = 180_000
STOP_MS = 20_000
SETTLE_S = 5.0


@dataclass(slots=True)
class _Phase:
    """What the load is told of the time."""

    name: str = "calm"
    over: bool = False


def _silent(_: str) -> None:
    """Say nothing."""


class RayHead:
    """The house, the load and the result."""

    def __init__(self, folder: Path) -> None:
        self._house = House(folder, choose_ports(0, 0))
        self._house.write_declared()
        self._house.write_configs(model_directory(default_cache()))
        self._supervisor = Supervisor(folder)
        self._up = Up(self._house, OPTIONS, self._supervisor, gguf_path(), _silent)
        self._specs: dict[str, ProcessSpec] = {}
        self._baseline: dict[str, str] = {}
        self._result = Result(NAME)
        self._phase = _Phase()
        self._refused: Counter[str] = Counter()
        self._cut: Counter[str] = Counter()
        self._served: Counter[str] = Counter()

    async def run(self) -> Result:
        """Run it. The house is gone when this returns."""
        try:
            await self._start()
            for prompt in PROMPTS:
                self._baseline[prompt] = (await ask(self._caller, _silent, prompt, max_tokens=TOKENS)).text
            workers = [asyncio.create_task(self._work(number)) for number in range(WORKERS)]
            await self._scene()
            self._phase.over = True
            await asyncio.gather(*workers)
        finally:
            await self._supervisor.stop_all(STOP_MS)
        result = self._result
        result.refused, result.cut = dict(self._refused), dict(self._cut)
        result.figures["answered without heads"] = self._served["headless"]
        if not self._served["headless"] or not self._served["back"]:
            result.failures.append(f"answers by phase: {dict(self._served)}")
        return result

    async def _scene(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(CALM_S)
        begun_s = loop.time()
        self._phase.name = "headless"
        for site in SITES:
            self._kill_head(site)
        await asyncio.sleep(HEADLESS_S)
        self._phase.name = "given up"
        for site in SITES:
            await self._given_up(f"ray-{site}", begun_s + GIVEN_UP_S)
        for site in SITES:
            self._house.ray_address(site).unlink(missing_ok=True)
            await self._supervisor.start(self._specs[f"ray-{site}"])
        for site in SITES:
            await self._supervisor.wait_ready(f"ray-{site}", START_MS)
        await self._up.until("the whole house again", self._up.lacks)
        self._result.recover_ms.append((loop.time() - begun_s) * 1000)
        await asyncio.sleep(SETTLE_S)
        self._phase.name = "back"
        await asyncio.sleep(SETTLE_S)

    @property
    def _caller(self) -> Caller:
        return self._up.caller("singapore")

    async def _start(self) -> None:
        """Start the house as `tidegate up` does, with clusters whose replicas outlive their head for a while."""
        for site in SITES:
            self._house.ray_address(site).unlink(missing_ok=True)
        groups = specs(self._house, OPTIONS, etcd_binary(), gguf_path())
        for number, group in enumerate(groups):
            for spec in group:
                linger = ("--linger-s", str(LINGER_S)) if spec.name.startswith("ray-") else ()
                self._specs[spec.name] = replace(spec, argv=(*spec.argv, *linger))
                await self._supervisor.start(self._specs[spec.name])
            for spec in group:
                await self._supervisor.wait_ready(spec.name, START_MS)
            if number == 1:
                for side in ("domestic", "overseas"):
                    await self._up.publish(side, self._house.declared(side))
        await self._up.until("the whole house", self._up.lacks)

    def _kill_head(self, site: str) -> None:
        pid = self._supervisor.pid(f"ray-{site}")
        heads = [] if pid is None else psutil.Process(pid).children(recursive=True)
        heads = [process for process in heads if process.name() == "gcs_server"]
        if len(heads) != 1:
            self._result.failures.append(f"{site} has {len(heads)} Ray heads")
        for head in heads:
            head.kill()

    async def _given_up(self, name: str, end_at: float) -> None:
        loop = asyncio.get_running_loop()
        while self._supervisor.alive(name) and loop.time() < end_at:  # noqa: ASYNC110 - the supervisor collects it
            await asyncio.sleep(0.1)
        if self._supervisor.alive(name):
            self._result.failures.append(f"{name} did not end after its head was lost")
            await self._supervisor.stop(name)

    async def _work(self, number: int) -> None:
        for prompt in itertools.islice(itertools.cycle(PROMPTS), number, None):
            if self._phase.over:
                return
            if not await self._one(prompt):
                await asyncio.sleep(0.3)

    async def _one(self, prompt: str) -> bool:
        """Ask once, and say whether it was answered."""
        began_in = self._phase.name
        result = self._result
        result.sent += 1
        try:
            outcome = await ask(self._caller, _silent, prompt, max_tokens=TOKENS)
        except openai.APIStatusError:
            raise
        except openai.APIError as error:
            code = str(getattr(error, "code", None))
            self._note(self._cut if code != "None" else None, code, began_in)
            return False
        if outcome.status != 200:
            self._note(self._refused, str(outcome.error.get("code")), began_in)
            return False
        if outcome.decision is None or outcome.decision["outcome"] != "sent":
            result.findings.add("unrecorded", f"an answer of {outcome.pool} has no decision record")
        if outcome.text != self._baseline[prompt] or outcome.finish_reason not in ("stop", "length"):
            result.lost += 1
            result.failures.append(f"an answer in the phase {began_in!r} has other words than before")
            return False
        result.answered += 1
        self._served[began_in] += 1
        return True

    def _note(self, counter: Counter[str] | None, code: str, began_in: str) -> None:
        """Count what was not answered. While replicas live, and with them all back, nothing may be."""
        if counter is None:
            self._result.lost += 1
            self._result.failures.append(f"an answer in the phase {began_in!r} ended without a word")
            return
        counter[code] += 1
        if self._phase.name != "given up" and began_in in ("calm", "headless", "back"):
            self._result.failures.append(f"{code} in the phase {began_in!r}")
