"""`wrk` as the load: its script, its command, and what it says at the end.

wrk corrects its latencies for coordinated omission: where answers were late, the requests that were not sent meanwhile
count as late too. That falls on every system alike.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.path.ask import Ask

SAID = "tidegate-bench "
ANSWER_S = 30
GRACE_S = 20.0
"""How long wrk may take beyond its time."""

_DONE = """
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\n@SAID@{"requests":%d,"duration_us":%d,"bytes":%d,"connect":%d,"read":%d,"write":%d,' ..
    '"status":%d,"timeout":%d,"mean_us":%.1f,"max_us":%d,"p50_us":%d,"p75_us":%d,"p90_us":%d,"p99_us":%d}\\n',
    summary.requests, summary.duration, summary.bytes, e.connect, e.read, e.write, e.status, e.timeout,
    latency.mean, latency.max, latency:percentile(50), latency:percentile(75), latency:percentile(90),
    latency:percentile(99)))
end
""".replace("@SAID@", SAID)


class WrkError(Exception):
    """wrk is not here, did not run, or met answers that were not what they should be."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of wrk came to."""

    requests: int
    duration_us: int
    bytes: int
    mean_us: float
    max_us: int
    p50_us: int
    p75_us: int
    p90_us: int
    p99_us: int

    @property
    def per_s(self) -> float:
        """Requests per second."""
        return self.requests * 1e6 / self.duration_us


def installed() -> str:
    """Return the path of wrk. Raises WrkError."""
    found = shutil.which("wrk")
    if found is None:
        raise WrkError("wrk is not installed: apt-get install wrk (a Debian package)")
    return found


def script(ask: Ask, body_file: Path) -> str:
    """Return the Lua that sends one request again and again. Pure."""
    lines = ['wrk.method = "POST"', f"local file = assert(io.open({_lua(str(body_file))}, 'rb'))"]
    lines += ["wrk.body = file:read('*a')", "file:close()"]
    lines += [f"wrk.headers[{_lua(name)}] = {_lua(value)}" for name, value in ask.headers.items()]
    return "\n".join(lines) + "\n" + _DONE


def read(output: str) -> Run:
    """Return what wrk said at its end. Raises WrkError when it met an error or said nothing. Pure."""
    line = next((line for line in output.splitlines() if line.startswith(SAID)), None)
    if line is None:
        raise WrkError(f"wrk did not report: {output[-300:].strip()}")
    said: dict[str, float] = json.loads(line.removeprefix(SAID))
    wrong = {name: int(said[name]) for name in ("connect", "read", "write", "status", "timeout") if said[name]}
    if wrong:
        raise WrkError(f"wrk met errors: {wrong} in {int(said['requests'])} requests")
    if not said["requests"]:
        raise WrkError("wrk got no answer")
    whole = {name: int(said[name]) for name in Run.__slots__ if name != "mean_us"}
    return Run(mean_us=float(said["mean_us"]), **whole)


async def run(ask: Ask, folder: Path, connections: int, seconds: int) -> Run:
    """Load one system with so many connections, one thread. Raises WrkError."""
    body_file, lua = folder / "body.json", folder / "ask.lua"
    body_file.write_bytes(ask.body)
    lua.write_text(script(ask, body_file), encoding="utf-8")
    command = [installed(), "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", f"{ANSWER_S}s"]
    process = await asyncio.create_subprocess_exec(
        *(*command, "-s", str(lua), ask.url), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(seconds + GRACE_S):
            output, _ = await process.communicate()
    except TimeoutError:
        raise WrkError(f"wrk did not end within {seconds + GRACE_S:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return read(output.decode("utf-8", "replace"))


def to_json(found: Run) -> Mapping[str, float]:
    """Return a run for machines. Pure."""
    return {name: getattr(found, name) for name in Run.__slots__} | {"per_s": found.per_s}


def _lua(text: str) -> str:
    """Return a string of Lua. Raises ValueError for what cannot stand in a header."""
    if not text.isprintable() or not text.isascii():
        raise ValueError("only printable ASCII goes into the script")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
