"""The rivals: each from the package index into an environment of its own, started against the engine of the stand.

The Rust routers run as they ship, and once more `lean`: round robin, no line for a request. There is one worker, so
their policy chooses nothing; it still costs what it costs.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from socket import socket

import yaml

from benchmarks import engine
from benchmarks.path.ask import Ask
from benchmarks.path.systems import NotMeasured, System
from benchmarks.stand import LOOPBACK, ROOT
from orchestrator.cli.processes import ProcessFailure, ProcessSpec, Supervisor, port_accepts

ENVIRONMENTS = ROOT / ".tidegate" / "bench"
INSTALL_S = 900.0
READY_MS = 90_000
SAME = "the tenant's request as it is"


@dataclass(frozen=True, slots=True)
class Command:
    """How to start a rival."""

    argv: tuple[str, ...]
    headers: tuple[tuple[str, str], ...] = ()
    """What its tenants send besides."""


@dataclass(frozen=True, slots=True)
class Rival:
    """One system that others make."""

    name: str
    title: str
    requirement: str
    """For pip, with its version."""
    command: Callable[[Path, Path, int, str], Command]
    """From its environment, a folder of its own, the port to listen on and the engine's URL."""
    seconds_min: int = 1
    rounds_max: int = 1_000


def _vllm(*more: str) -> Callable[[Path, Path, int, str], Command]:
    def command(environment: Path, folder: Path, port: int, worker: str) -> Command:
        (metrics,) = free_ports(1)
        program = str(environment / "bin" / "vllm-router")
        listen = ("--host", LOOPBACK, "--port", str(port), "--prometheus-port", str(metrics))
        return Command((program, *listen, "--worker-urls", worker, *more))

    return command


def _sglang(*more: str) -> Callable[[Path, Path, int, str], Command]:
    def command(environment: Path, folder: Path, port: int, worker: str) -> Command:
        (metrics,) = free_ports(1)
        program = str(environment / "bin" / "sglang-router")
        listen = ("--host", LOOPBACK, "--port", str(port), "--prometheus-port", str(metrics))
        return Command((program, "launch", *listen, "--worker-urls", worker, *more))

    return command


def _litellm(environment: Path, folder: Path, port: int, worker: str) -> Command:
    key = "sk-" + secrets.token_hex(16)
    model = {
        "model_name": engine.MODEL,
        "litellm_params": {"model": f"openai/{engine.MODEL}", "api_base": f"{worker}/v1", "api_key": "none"},
    }
    config = folder / "litellm.yaml"
    config.write_text(yaml.safe_dump({"model_list": [model], "general_settings": {"master_key": key}}), "utf-8")
    config.chmod(0o600)
    listen = ("--host", LOOPBACK, "--port", str(port), "--num_workers", "1")
    argv = (str(environment / "bin" / "litellm"), "--config", str(config), *listen)
    return Command(argv, (("authorization", f"Bearer {key}"),))


_VLLM, _SGLANG = "vllm-router==0.1.17", "sglang-router==0.3.2"
RIVALS = (
    Rival("vllm-router", "vllm-router 0.1.17", _VLLM, _vllm()),
    Rival("sglang-router", "sglang-router 0.3.2", _SGLANG, _sglang()),
    Rival(
        "vllm-router-lean",
        "vllm-router 0.1.17, lean",
        _VLLM,
        _vllm("--policy", "round_robin", "--log-level", "warning"),
    ),
    Rival(
        "sglang-router-lean",
        "sglang-router 0.3.2, lean",
        _SGLANG,
        _sglang("--policy", "round_robin", "--log-level", "warn"),
    ),
    Rival(
        "litellm",
        "LiteLLM proxy 1.108.7, 1 worker",
        "litellm[proxy]==1.108.7",
        _litellm,
        seconds_min=10,
        rounds_max=1,
    ),
)


def installed(requirement: str, environments: Path) -> Path:
    """Return the environment that holds a package; make it where there is none. Raises NotMeasured."""
    environment = environments / requirement.replace("[", "-").replace("]", "").replace("==", "-")
    whole = environment / "whole"
    if whole.exists():
        return environment
    environments.mkdir(parents=True, exist_ok=True)
    pip = (str(environment / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", requirement)
    _told((sys.executable, "-m", "venv", "--clear", str(environment)))
    _told(pip)
    whole.touch()
    return environment


async def started(rival: Rival, supervisor: Supervisor, folder: Path, environments: Path, worker: str) -> System:
    """Start a rival and return it when it listens. Raises NotMeasured with the reason."""
    try:
        environment = await asyncio.to_thread(installed, rival.requirement, environments)
    except OSError as failure:
        raise NotMeasured(f"its environment could not be made: {failure}") from failure
    (port,) = free_ports(1)
    own = folder / rival.name
    own.mkdir(parents=True, exist_ok=True)
    command = rival.command(environment, own, port, worker)
    spec = ProcessSpec(rival.name, command.argv, cwd=own, ready=port_accepts(LOOPBACK, port))
    try:
        await supervisor.start(spec)
        await supervisor.wait_ready(rival.name, READY_MS)
    except (ProcessFailure, OSError) as failure:
        raise NotMeasured(f"it did not start: {failure}") from failure
    pid = supervisor.pid(rival.name)
    if pid is None:
        raise NotMeasured("it ended at once")
    headers = {"content-type": "application/json", **dict(command.headers)}

    def ask(body: bytes) -> Ask:
        return Ask(LOOPBACK, port, headers, body)

    bounds = (rival.seconds_min, rival.rounds_max)
    return System(rival.name, rival.title, engine.MODEL, ask, {"router": pid}, SAME, *bounds)


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback that nobody has now."""
    with ExitStack() as stack:
        held = [stack.enter_context(socket()) for _ in range(count)]
        for one in held:
            one.bind((LOOPBACK, 0))
        return [int(one.getsockname()[1]) for one in held]


def _told(argv: Sequence[str]) -> None:
    """Run a command of the installation to its end. Raises NotMeasured."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    try:
        ran = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotMeasured(f"its environment could not be made: {type(error).__name__}") from error
    if ran.returncode:
        lines = [line for line in ran.stderr.splitlines() if line.strip()]
        raise NotMeasured(f"its environment could not be made: {lines[-1] if lines else ran.returncode}")
