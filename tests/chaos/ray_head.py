"""The scenario of a lost Ray head, on a house of its own: embedded engines on Ray, as `tidegate up` starts them.

The heads of both sites are killed under load. Replicas that live must finish what they have and take more, with the
same words as before, until a fresh cluster has fresh ones; those take over, and the old ones end what they have. Nobody
is refused meanwhile, and nothing of the old clusters is left in the end.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import openai
import psutil

from orchestrator.cli.house import House, choose_ports
from orchestrator.cli.processes import Supervisor
from orchestrator.cli.samples import Caller, ask
from orchestrator.cli.up import LINGER_S, Options, Up
from protos.tidegate.v1 import control_pb2 as pb
from scheduler.pools.prepare import default_cache, gguf_path, model_directory
from tests.chaos.report import Result

NAME = "ray-head"
ABOUT = "SIGKILL of both sites' Ray heads under load; live replicas serve on until fresh ones do (a house of its own)"
SITES = ("guizhou", "shanghai")
OPTIONS = Options({"guizhou": 60, "shanghai": 40}, None, once=True)
PROMPTS = ("Name one river in Europe.", "What is the capital of Japan?", "Count from one to ten.")
TOKENS = 12
WORKERS = 3
CALM_S = 3.0
ENDED_S = 15.0
"""How long the processes of the old clusters may take to end, once they are ended."""
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
        self._baseline: dict[str, str] = {}
        self._result = Result(NAME)
        self._phase = _Phase()
        self._refused: Counter[str] = Counter()
        self._cut: Counter[str] = Counter()
        self._served: Counter[str] = Counter()

    async def run(self) -> Result:
        """Run it. The house is gone when this returns."""
        try:
            await self._up.start()
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
        if not all(self._served[phase] for phase in ("calm", "headless", "back")):
            result.failures.append(f"answers by phase: {dict(self._served)}")
        return result

    async def _scene(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(CALM_S)
        begun_s = loop.time()
        self._phase.name = "headless"
        old = [process for site in SITES for process in self._kill_head(site)]
        await self._up.until("fresh replicas at both sites", _stale, START_MS / 1000)
        self._result.recover_ms.append((loop.time() - begun_s) * 1000)
        self._phase.name = "back"
        end_at = loop.time() + LINGER_S + ENDED_S
        while (left := _running(old)) and loop.time() < end_at:  # noqa: ASYNC110 - nobody tells of the end of others
            await asyncio.sleep(0.2)
        if left:
            self._result.failures.append(f"left of the old clusters: {[process.name() for process in left]}")
        await asyncio.sleep(SETTLE_S)

    @property
    def _caller(self) -> Caller:
        return self._up.caller("singapore")

    def _kill_head(self, site: str) -> list[psutil.Process]:
        """Kill it. Returns what is left of its cluster."""
        pid = self._supervisor.pid(f"ray-{site}")
        cluster = [] if pid is None else psutil.Process(pid).children(recursive=True)
        heads = [process for process in cluster if process.name() == "gcs_server"]
        if len(heads) != 1:
            self._result.failures.append(f"{site} has {len(heads)} Ray heads")
        for head in heads:
            head.kill()
        return cluster

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
        """Count what was not answered: there are replicas at every moment, so nothing may be."""
        if counter is None:
            self._result.lost += 1
            self._result.failures.append(f"an answer in the phase {began_in!r} ended without a word")
            return
        counter[code] += 1
        self._result.failures.append(f"{code} in the phase {began_in!r}")


def _stale(members: Mapping[str, pb.MemberReport]) -> list[str]:
    """Return what is not there yet of the fresh replicas, and what is still there of the old ones."""
    found = [(site, one) for site in SITES if site in members for one in members[site].replicas]
    fresh = {site for site, one in found if one.state == "up" and one.restarts > 0}
    old = [f"{one.replica} gone" for _, one in found if one.state == "leaving"]
    return [*Up.lacks(members), *(f"a fresh replica at {site}" for site in SITES if site not in fresh), *old]


def _running(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
