"""The operator's command: ``up``, ``publish``, ``status``; of the law ``policy``, ``explain``; of placement ``replay``,
``whatif``, ``canary``."""

from __future__ import annotations

import asyncio
import ctypes
import signal
import subprocess
import sys
from json import dumps
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from orchestrator.cli.house import SITES, House, HouseError, choose_ports
from orchestrator.cli.law.commands import bundle, explain_command, policy
from orchestrator.cli.publish import PublishFailed, publish
from orchestrator.cli.replay.canary import canary_command
from orchestrator.cli.replay.commands import replay_command
from orchestrator.cli.replay.whatif import whatif_command
from orchestrator.cli.status import fetch_status, render_status, status_to_json
from orchestrator.cli.up import Options, UpError, run
from orchestrator.config.secret import Secret, SettingsError, read_secret
from orchestrator.files.document import FileError

EXIT_BAD_INPUT = 2
EXIT_NOT_NOW = 1
PR_SET_PDEATHSIG = 1
PREPARE_S = 300
DEFAULT_RTT_MS = {"guizhou": 220, "shanghai": 180}

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Sends every inference to the cheapest, nearest pool that is allowed to see it.",
)

app.add_typer(policy, name="policy")
app.add_typer(bundle, name="bundle")
app.command("explain")(explain_command)
app.command("replay")(replay_command)
app.command("whatif")(whatif_command)
app.command("canary")(canary_command)

ControlOption = Annotated[
    list[str] | None, typer.Option("--control", help="host:port of a control plane; repeat it for both sides.")
]
TokenOption = Annotated[
    list[Path] | None, typer.Option("--token-file", help="File with the operator's token, one per --control.")
]


def parse_rtt(text: str) -> dict[str, int]:
    """Return site to round trip from ``guizhou=220,shanghai=180``. Raises ValueError with a sentence. Pure."""
    found = dict(DEFAULT_RTT_MS)
    for part in filter(None, text.split(",")):
        site, _, value = part.partition("=")
        if site not in SITES or not value.isdigit() or int(value) > 10_000:
            sites = ", ".join(SITES)
            raise ValueError(f"--rtt-ms: expected site=milliseconds with a site of {sites}, such as guizhou=220")
        found[site] = int(value)
    return found


@app.command()
def up(
    once: Annotated[bool, typer.Option("--once", help="Send the five requests, then stop.")] = False,
    rtt_ms: Annotated[str, typer.Option("--rtt-ms", help="Emulated round trips.")] = "guizhou=220,shanghai=180",
    data: Annotated[Path, typer.Option("--data", help="Folder of the house.")] = Path(".tidegate"),
    port_singapore: Annotated[int, typer.Option(help="Port of the Singapore edge; 0 takes a free one.")] = 8101,
    port_frankfurt: Annotated[int, typer.Option(help="Port of the Frankfurt edge; 0 takes a free one.")] = 8102,
    capture: Annotated[Path | None, typer.Option(help="Keep every byte that crosses a border here.")] = None,
    model_dir: Annotated[Path | None, typer.Option(help="Prepared model; default is the cache.")] = None,
    gguf: Annotated[Path | None, typer.Option(help="Model file of the Frankfurt engine.")] = None,
) -> None:
    """Run both sides of the border on this machine, send five requests, and keep serving."""
    try:
        round_trips = parse_rtt(rtt_ms)
        house = House(data.resolve(), choose_ports(port_singapore, port_frankfurt))
        prepared = _model_files(model_dir, gguf)
        house.write_declared()
        house.write_configs(prepared[0])
        house.write_demo_env()
    except (ValueError, HouseError, UpError) as error:
        _fail(str(error))
    _end_with_parent()
    options = Options(round_trips, None if capture is None else capture.resolve(), once)
    raise typer.Exit(asyncio.run(run(house, options, prepared[1], _say)))


@app.command("publish")
def publish_command(
    folder: Annotated[Path, typer.Argument(help="Folder with packs, tenants, fleet, prices, settings.")],
    control: Annotated[str, typer.Option("--control", help="host:port of the side's control plane.")],
    token_file: Annotated[Path, typer.Option("--token-file", help="File with the operator's token.")],
    expected: Annotated[int, typer.Option(help="Number of the manifest that this replaces; 0 does not ask.")] = 0,
) -> None:
    """Check a folder of declared files and publish it as the side's next manifest."""
    try:
        done = asyncio.run(publish(control, read_secret(token_file), folder, expected))
    except (FileError, SettingsError) as error:
        _fail(str(error))
    except PublishFailed as error:
        _fail(str(error), EXIT_NOT_NOW if error.retry else EXIT_BAD_INPUT)
    _say(f"manifest {done.number} {done.digest}")


@app.command("status")
def status_command(
    control: ControlOption = None,
    token_file: TokenOption = None,
    data: Annotated[Path, typer.Option("--data", help="Folder of a house made by `tidegate up`.")] = Path(".tidegate"),
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show sides, edges, pools, replicas, sessions, manifest numbers and ages."""
    try:
        targets = _targets(control or [], token_file or [], data)
    except SettingsError as error:
        _fail(str(error))
    sides = asyncio.run(fetch_status(targets))
    if json:
        _say(dumps(status_to_json(sides), indent=2))
    else:
        render_status(sides, Console())
    if any(side.reply is None for side in sides):
        raise typer.Exit(EXIT_NOT_NOW)


def main() -> None:
    """Run the command."""
    app()


def _targets(controls: list[str], token_files: list[Path], data: Path) -> list[tuple[str, Secret]]:
    """Return the control planes that were named, or those of the house in `data`. Raises SettingsError."""
    if len(controls) != len(token_files):
        raise SettingsError("command line", "--token-file", "expected one for each --control")
    if controls:
        return [(control, read_secret(file)) for control, file in zip(controls, token_files, strict=True)]
    try:
        lines = (data / "demo.env").read_text(encoding="utf-8").splitlines()
    except OSError:
        raise SettingsError("command line", "--control", f"expected one, or a running house in {data}") from None
    env = dict(line.split("=", 1) for line in lines)
    return [
        (env[f"TIDEGATE_DEMO_{side}_CONTROL"], read_secret(Path(env[f"TIDEGATE_DEMO_{side}_TOKEN_FILE"])))
        for side in ("OVERSEAS", "DOMESTIC")
    ]


def _model_files(model_dir: Path | None, gguf: Path | None) -> tuple[Path, Path]:
    """Return the prepared model and the engine's file: as given, or as the preparation of the model says.

    It is asked as a process of its own: this command imports no program.
    """
    if model_dir is not None and gguf is not None:
        return model_dir.resolve(), gguf.resolve()
    command = [sys.executable, "-m", "scheduler.pools.prepare", "--paths"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PREPARE_S)
    lines = asked.stdout.splitlines()
    if asked.returncode != 0 or len(lines) < 2:
        raise HouseError("the model is not prepared; run `make setup`")
    return Path(lines[-2]), Path(lines[-1])


def _end_with_parent() -> None:
    """Have the kernel tell us to stop when who started us dies (Linux): `make` killed leaves no house behind."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _fail(sentence: str, status: int = EXIT_BAD_INPUT) -> NoReturn:
    sys.stderr.write(f"{sentence}\n")
    raise typer.Exit(status)
