"""How etcd is reached: several members, TLS, and settings that are refused."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from orchestrator.control.entries import RegistryKey, RegistryUnavailable
from orchestrator.control.members import RegistrySettings, RegistryTls
from orchestrator.control.registry import Registry
from tests.etcd_process import EtcdProcess, EtcdTls
from tests.registry.conftest import OpenRegistry
from tests.registry.recording import until

pytestmark = pytest.mark.e2e

K = RegistryKey("k")


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and says nothing, as a hung member does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


@pytest.fixture
def refused_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_a_member_that_is_down_is_passed_over(
    etcd: EtcdProcess, open_registry: OpenRegistry, refused_port: int
) -> None:
    registry = open_registry(f"http://127.0.0.1:{refused_port}", etcd.url)
    assert await registry.get(K) is None
    revision = await registry.create(K, b"v")
    watch = registry.watch_prefix()
    await watch.ready(2.0)
    assert watch.state[K].mod_revision == revision


async def test_a_member_that_hangs_is_passed_over_within_the_deadline(
    etcd: EtcdProcess, open_registry: OpenRegistry, silent_port: int
) -> None:
    registry = open_registry(f"http://127.0.0.1:{silent_port}", etcd.url)
    began_s = time.monotonic()
    assert await registry.get(K, timeout_s=1.0) is None
    assert time.monotonic() - began_s < 1.0


async def test_a_watch_leaves_a_member_that_hangs_under_it(
    etcd: EtcdProcess, open_registry: OpenRegistry, tmp_path: Path
) -> None:
    """Two servers of one member each stand in for two members: what matters is where the watch turns to."""
    with EtcdProcess(tmp_path / "other") as other:
        registry = open_registry(etcd.url, other.url, timeout_s=0.5, progress_s=0.3)
        watch = registry.watch_prefix()
        await watch.ready(2.0)
        await until(lambda: watch.connected, 2.0)
        etcd.pause()
        await until(lambda: not watch.connected, 2.0)
        await until(lambda: watch.connected, 5.0)
        assert watch.age_s(time.monotonic()) < 2.0
        etcd.resume()
        await registry.close()


async def test_no_member_at_all_is_unavailable_in_time(open_registry: OpenRegistry, refused_port: int) -> None:
    registry = open_registry(f"http://127.0.0.1:{refused_port}")
    began_s = time.monotonic()
    with pytest.raises(RegistryUnavailable) as raised:
        await registry.get(K, timeout_s=1.0)
    assert time.monotonic() - began_s < 1.2
    assert raised.value.reason.startswith("UNAVAILABLE")
    with pytest.raises(ValueError):
        await registry.get(K, timeout_s=0.0)
    with pytest.raises(ValueError):
        await registry.get(K, timeout_s=float("inf"))


async def test_a_closed_registry_is_unavailable_for_calls_on_their_way_too(
    etcd: EtcdProcess, open_registry: OpenRegistry
) -> None:
    registry = open_registry()
    await registry.get(K)
    etcd.pause()
    calls = [asyncio.create_task(registry.get(K)), asyncio.create_task(registry.create(K, b"v"))]
    cancelled = asyncio.create_task(registry.get(K))
    await asyncio.sleep(0.1)
    cancelled.cancel()
    await registry.close()
    await registry.close()
    outcomes = await asyncio.gather(*calls, cancelled, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [RegistryUnavailable, RegistryUnavailable, asyncio.CancelledError]
    for call in (registry.get(K), registry.create(K, b""), registry.grant(1)):
        with pytest.raises(RegistryUnavailable):
            await call
    with pytest.raises(RegistryUnavailable):
        registry.watch_prefix()


@pytest.mark.parametrize(
    ("endpoints", "prefix", "secure"),
    [
        ((), "/p/", False),
        (("http://127.0.0.1:2379",), "/p", False),
        (("http://127.0.0.1:2379",), "/p/", True),
        (("https://127.0.0.1:2379",), "/p/", False),
        (("https://127.0.0.1:2379", "http://127.0.0.1:2380"), "/p/", True),
        (("127.0.0.1:2379",), "/p/", False),
        (("http://127.0.0.1",), "/p/", False),
        (("http://user:word@127.0.0.1:2379",), "/p/", False),
        (("http://127.0.0.1:2379/path",), "/p/", False),
        (("http://127.0.0.1:99999",), "/p/", False),
    ],
)
async def test_wrong_settings_are_refused(
    tmp_path: Path, endpoints: tuple[str, ...], prefix: str, secure: bool
) -> None:
    tls = RegistryTls(_authority(tmp_path)[0]) if secure else None
    with pytest.raises(ValueError):
        Registry.open(RegistrySettings(endpoints, prefix, tls))


async def test_mutual_tls(tmp_path: Path, no_task_left: None) -> None:
    ca, signer, signer_key = _authority(tmp_path)
    server = _certificate(tmp_path, "server", signer, signer_key)
    client = _certificate(tmp_path, "client", signer, signer_key)
    with EtcdProcess(tmp_path / "tls", tls=EtcdTls(ca, *server)) as own:
        assert own.url.startswith("https://")
        async with Registry.open(RegistrySettings((own.url,), "/tls/", RegistryTls(ca, *client))) as registry:
            await registry.create(K, b"v")
            watch = registry.watch_prefix()
            await watch.ready(2.0)
            assert watch.state[K].value == b"v"
        async with Registry.open(RegistrySettings((own.url,), "/tls/", RegistryTls(ca))) as unknown:
            with pytest.raises(RegistryUnavailable):
                await unknown.get(K)
        (tmp_path / "foreign").mkdir()
        foreign = RegistryTls(_authority(tmp_path / "foreign")[0], *client)
        async with Registry.open(RegistrySettings((own.url,), "/tls/", foreign)) as deceived:
            with pytest.raises(RegistryUnavailable):
                await deceived.get(K)
    with pytest.raises(ValueError):
        Registry.open(RegistrySettings((own.url,), "/tls/", RegistryTls(ca, cert=client[0])))


def _authority(folder: Path) -> tuple[Path, x509.Name, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"tests {folder.name}")])
    certificate = _builder(name, name, key).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    path = folder / "ca.pem"
    path.write_bytes(certificate.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return path, name, key


def _certificate(
    folder: Path, name: str, signer: x509.Name, signer_key: ec.EllipticCurvePrivateKey
) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    addresses = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = _builder(subject, signer, key).add_extension(addresses, critical=False)
    cert_path, key_path = folder / f"{name}.pem", folder / f"{name}.key"
    cert_path.write_bytes(certificate.sign(signer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert_path, key_path


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(hours=1))
    )
