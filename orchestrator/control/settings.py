"""The settings of one control plane, from one YAML file and the environment (`TIDEGATE_CONTROL_`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from orchestrator.bundles.roots import Root, Roots, RootSetting, SigningKey, pinned
from orchestrator.config.secret import Secret, SettingsError, read_secret
from orchestrator.control.members import RegistrySettings, RegistryTls
from orchestrator.control.publish import Lifetimes
from orchestrator.policy.bundle import FRESH_MS, NOT_AFTER_MS, REGULATED_MS
from orchestrator.policy.ids import SideId, is_name

PREFIX = "TIDEGATE_CONTROL_"
TOKEN_CHARS_MIN = 16


class EtcdSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The etcd of this side. The three files belong to `https` endpoints."""

    endpoints: tuple[str, ...]
    ca_file: Path | None = None
    certificate_file: Path | None = None
    client_key_file: Path | None = None
    timeout_ms: int = 2_000
    progress_ms: int = 1_000


class ControlSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One control plane."""

    side: str
    listen: str
    """``host:port``"""
    etcd: EtcdSettings
    root_key_file: Path
    """PEM (PKCS 8), Ed25519. Its public half is one of `roots`, for this side."""
    operator_token_file: Path
    data_dir: Path
    roots: tuple[RootSetting, ...]
    peer: str | None = None
    """``host:port`` of the other side's control, which this one dials. The domestic side dials nobody."""
    fresh_ms: int = FRESH_MS
    regulated_ms: int = REGULATED_MS
    not_after_ms: int = NOT_AFTER_MS


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this control is: what its settings and mounted secrets say once they were checked."""

    side: SideId
    roots: Roots
    root: Root
    key: SigningKey
    token: Secret
    registry: RegistrySettings
    lifetimes: Lifetimes


def identify(settings: ControlSettings) -> Identity:
    """Read the secrets and check what no type can. Raises SettingsError."""
    if not is_name(settings.side):
        raise SettingsError("settings", "side", "expected a short lower-case name")
    side = SideId(settings.side)
    try:
        roots = pinned(settings.roots)
    except ValueError as refusal:
        raise SettingsError("settings", "roots", str(refusal)) from None
    key = _signing_key(settings.root_key_file)
    root = roots.own(side, key.public_key)
    if root is None:
        raise SettingsError("settings", "roots", f"expected a root of {side} with the public half of root_key_file")
    token = read_secret(settings.operator_token_file)
    if len(token.reveal()) < TOKEN_CHARS_MIN:
        expected = f"expected a token of at least {TOKEN_CHARS_MIN} characters"
        raise SettingsError(str(settings.operator_token_file), "", expected)
    return Identity(side, roots, root, key, token, _registry(settings.etcd, side), _lifetimes(settings))


def _signing_key(path: Path) -> SigningKey:
    secret = read_secret(path)
    try:
        return SigningKey.from_pem(secret.reveal())
    except ValueError as refusal:
        raise SettingsError(str(path), "", str(refusal)) from None


def _lifetimes(settings: ControlSettings) -> Lifetimes:
    if not 0 < settings.fresh_ms <= settings.regulated_ms <= settings.not_after_ms:
        raise SettingsError("settings", "fresh_ms", "expected fresh_ms <= regulated_ms <= not_after_ms, above zero")
    for name, value, most in (
        ("fresh_ms", settings.fresh_ms, FRESH_MS),
        ("regulated_ms", settings.regulated_ms, REGULATED_MS),
        ("not_after_ms", settings.not_after_ms, NOT_AFTER_MS),
    ):
        if value > most:
            raise SettingsError("settings", name, f"expected at most {most}: no manifest lives longer")
    return Lifetimes(settings.fresh_ms, settings.regulated_ms, settings.not_after_ms)


def _registry(settings: EtcdSettings, side: SideId) -> RegistrySettings:
    tls = None
    if settings.ca_file is not None:
        tls = RegistryTls(settings.ca_file, settings.certificate_file, settings.client_key_file)
    elif settings.certificate_file is not None or settings.client_key_file is not None:
        raise SettingsError("settings", "etcd.ca_file", "expected it beside certificate_file and client_key_file")
    return RegistrySettings(
        endpoints=settings.endpoints,
        prefix=f"/tidegate/{side}/",
        tls=tls,
        timeout_s=settings.timeout_ms / 1000,
        progress_s=settings.progress_ms / 1000,
    )
