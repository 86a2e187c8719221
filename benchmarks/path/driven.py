"""Runs `benchmarks.path.driver` as a process of its own against the intake of a stand."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import msgspec

from benchmarks.path.ask import WrongAnswer, body_of
from benchmarks.path.driver import Window
from benchmarks.stand import INSTANT, ROOT, TENANT, TWO_HOP, Stand

ENGINE = "engine"
GRACE_S = 60.0
"""How long the driver may take beyond its time: it starts, dials, prepares, and waits for the last answers."""
EACH_PER_S = 10_000
"""Attempts that are prepared for a process of the intake and a second: more than it answers."""
WARM_S = 1.0


async def driven(
    stand: Stand, tokens: int, folder: Path, seconds: int, in_flight: int, intake_pid: int
) -> list[Window]:
    """Drive an intake with attempts of general data, and measure each second.

    Raises WrongAnswer when one of them had no whole answer.
    """
    engine = next(one for one in stand.engines if one.name == INSTANT)
    body_file = folder / "body.json"
    body_file.write_bytes(body_of(engine.model(TWO_HOP), stream=True, tokens=tokens))
    watched = {"intake": intake_pid, ENGINE: stand.process(engine.spec.name).pid}
    argv = (
        *(sys.executable, "-m", "benchmarks.path.driver", "--config", str(stand.config("edge")), "--tenant", TENANT),
        *("--body", str(body_file), "--tokens", str(tokens), "--in-flight", str(in_flight)),
        *("--each", str(round(EACH_PER_S * (seconds + WARM_S))), "--seconds", str(seconds)),
        *("--watch", ",".join(f"{name}={pid}" for name, pid in watched.items()), "--ours", str(os.getpid())),
    )
    process = await asyncio.create_subprocess_exec(
        *argv, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(seconds + GRACE_S):
            output, errors = await process.communicate()
    except TimeoutError:
        raise WrongAnswer(f"the driver did not end within {seconds + GRACE_S:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise WrongAnswer(errors.decode("utf-8", "replace").strip()[-400:])
    return msgspec.json.decode(output, type=list[Window])
