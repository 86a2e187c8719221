"""A real edge process on its last bundle from disk, with one in-region engine that the test holds in its hand."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from orchestrator.bundles.formats import SectionKind
from orchestrator.bundles.roots import SigningKey
from orchestrator.policy.ids import KeyId, format_api_key
from orchestrator.spool.records import RecordKind
from orchestrator.spool.store import Spool
from tests.bundles.sides import (
    MODEL,
    Document,
    Side,
    fleet,
    holdings_in,
    issue,
    make_side,
    pack,
    placement_settings,
    prices,
    take,
    tenants,
)

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60
EDGE = "sg-edge"
SECRET = b"s" * 32
API_KEY = format_api_key(KeyId("acmekey1"), SECRET)


class Engine:
    """An OpenAI-compatible engine that counts what it was asked, and answers when it may."""

    def __init__(self) -> None:
        self.asked = 0
        self.arrived = threading.Event()
        """Set when a request is here."""
        self.may_answer = threading.Event()
        self.early_bytes = 0
        """So much of an answer it sends before it may answer."""
        engine = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.reply("application/json", json.dumps({"data": [{"id": MODEL}]}).encode())

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                engine.asked += 1
                engine.arrived.set()
                if not engine.early_bytes:
                    engine.may_answer.wait(TIMEOUT_S)
                self.reply("text/event-stream", answer(), engine.early_bytes)

            def reply(self, kind: str, body: bytes, early_bytes: int = 0) -> None:
                self.send_response(200)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                if early_bytes:
                    self.wfile.write(body[:early_bytes])
                    engine.may_answer.wait(TIMEOUT_S)
                with contextlib.suppress(OSError):  # whoever asked may have left meanwhile
                    self.wfile.write(body[early_bytes:])

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.may_answer.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def answer() -> bytes:
    """A short answer as an engine streams it."""
    usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
    frame = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    said = {"index": 0, "delta": {"role": "assistant", "content": "Yes"}, "finish_reason": None}
    chunks: list[dict[str, Any]] = [
        {**frame, "choices": [said]},
        {**frame, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {**frame, "choices": [], "usage": usage},
    ]
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


@dataclass
class LoneEdge:
    """One edge that can be killed and started again over the same data."""

    folder: Path
    engine: Engine
    port: int
    settings: Path
    through: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None

    def start(self, errors: Path | None = None) -> None:
        """Start it. `errors` is where its log lines go, in place of the log."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, *self.through, "node_agent", "--config", str(self.settings)]
        with (self.folder / "log").open("ab") as log, (errors or self.folder / "log").open("ab") as told:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=told, stdout=log)
        end_at = time.monotonic() + TIMEOUT_S
        while not self._ready():
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < end_at, (self.folder / "log").read_text()
            time.sleep(0.05)

    def stop(self, how: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(TIMEOUT_S)

    def records(self, kind: str) -> list[dict[str, Any]]:
        """What the spool of a stopped edge holds."""
        with Spool(self.folder / "data" / "spool", capacity_bytes=1 << 30, segment_bytes=4 << 20) as spool:
            return [json.loads(entry.data) for entry in spool.read_from() if entry.kind == RecordKind(kind)]

    def _ready(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(2)
            try:
                probe.connect(("127.0.0.1", self.port))
                probe.sendall(b"GET /readyz HTTP/1.1\r\nhost: edge\r\nconnection: close\r\n\r\n")
                return probe.recv(64).startswith(b"HTTP/1.1 200")
            except OSError:
                return False


def side_of(engine: str) -> Side:
    """One side in Singapore with one edge, one engine, and a law that grants general use and the keeping of results."""
    declared = fleet(EDGE, "sg-pool", "SG", "harbour-sg")
    pool = declared["pools"][0]
    for name in ("scheduler", "intake"):
        del pool[name]
    pool |= {"assurance": "edge-only", "engine": engine, "reachable_from": [EDGE]}
    (tenant,) = tenants("acme")["tenants"]
    tenant |= {
        "keys": [{"id": "acmekey1", "sha256": sha256(SECRET).hexdigest()}],
        "attested": {"personal": "none", "grade": "public", "origin": ["SG"]},
        "keep_results": True,
    }
    return make_side(
        "overseas",
        ("SG",),
        [
            (SectionKind.PACK, "sg", law()),
            (SectionKind.FLEET, "fleet", declared),
            (SectionKind.PRICES, "prices", prices("sg-pool")),
            (SectionKind.SETTINGS, "settings", placement_settings()),
            (SectionKind.TENANTS, "tenants", {"version": 1, "tenants": [tenant]}),
        ],
    )


def law() -> Document:
    found = pack("sg-law", ["SG"], "SG", target=["SG"])
    keep = json.loads(json.dumps(found["rules"][0]))
    keep["id"] = "SG-KEEP-1"
    keep["when"].append({"action": {"in": ["store"]}})
    for vector in keep["vectors"]:
        vector["action"] = "store"
    found["rules"].append(keep)
    return found


def free_port() -> int:
    """A port that nobody has, below those that the system hands out by itself: it would take one meanwhile."""
    while True:
        port = secrets.choice(range(12_000, 20_000))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextmanager
def lone_edge(folder: Path, more: str = "", through: tuple[str, ...] = ("-m",)) -> Iterator[LoneEdge]:
    """A started edge; whatever is left of it is gone when the block ends.

    `more` are lines of its settings, `through` the arguments of the interpreter that run it.
    """
    engine = Engine()
    side = side_of("local")
    now_ms = time.time_ns() // 1_000_000
    take(holdings_in(folder / "data" / "bundles", side), issue(side, 1, issued_ms=now_ms), now_ms=now_ms)
    SigningKey.generate().write(folder / "edge.pem")
    commitment = folder / "edge.commitment"
    commitment.write_text("ab" * 32)
    commitment.chmod(0o600)
    port = free_port()
    root = base64.b64encode(side.root.public_key).decode()
    settings = folder / "edge.yaml"
    settings.write_text(
        f"id: {EDGE}\nside: overseas\nhost: 127.0.0.1\nport: {port}\ncontrol: 127.0.0.1:9\n"
        f"data_dir: {folder}/data\nsigning_key_file: {folder}/edge.pem\ncommitment_key_file: {commitment}\n"
        f"roots:\n  - {{side: overseas, public_key: {root}, jurisdictions: [SG]}}\n"
        f"engines:\n  - {{name: local, base_url: '{engine.url}', served_model: {MODEL}}}\n"
        f"drain_grace_ms: 500\n{more}"
    )
    edge = LoneEdge(folder, engine, port, settings, through)
    try:
        edge.start()
        yield edge
    finally:
        if edge.process is not None:
            edge.process.kill()
            edge.process.wait(TIMEOUT_S)
        engine.close()
