"""Settings: one file, the environment on top, and one sentence when something is wrong."""

from __future__ import annotations

import io
from decimal import Decimal
from enum import Enum
from pathlib import Path

import msgspec
import pytest

from orchestrator.config.secret import Secret, SettingsError, read_secret
from orchestrator.config.settings import load_settings, render_effective, run_program
from orchestrator.files.document import FileError, load_document

PREFIX = "TIDEGATE_EDGE_"


class Mode(Enum):
    ENFORCE = "enforce"
    SHADOW = "shadow"


class Border(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    host: str = "127.0.0.1"
    port: int = 8443
    mode: Mode = Mode.ENFORCE
    share: Decimal = Decimal("0.05")
    note: str | None = None
    strict: bool = True
    signing_key_file: Path | None = None


class Store(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    endpoints: list[str] = []
    api_token: str = ""
    options: dict[str, int] = {}


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    region: str
    service_port: int = 443
    border: Border = Border()
    stores: list[Store] = []


class Thawed(msgspec.Struct, forbid_unknown_fields=True):
    a: int = 0


class HoldsThawed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    inner: Thawed


class HoldsSecret(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    seal: Secret | None = None


def write(folder: Path, text: str) -> Path:
    path = folder / "edge.yaml"
    path.write_text(text)
    return path


def load(folder: Path, text: str, **env: str) -> Settings:
    return load_settings(Settings, write(folder, text), {PREFIX + name: value for name, value in env.items()}, PREFIX)


def refusal(folder: Path, text: str, **env: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(folder, text, **env)
    return str(caught.value).removeprefix(f"{folder}/")


def test_the_file_gives_settings_and_defaults_fill_the_rest(tmp_path: Path) -> None:
    settings = load(tmp_path, "region: NO\nborder:\n  port: 9\n  signing_key_file: /run/secrets/key\n")
    assert settings == Settings(region="NO", border=Border(port=9, signing_key_file=Path("/run/secrets/key")))


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        "region: sg-1\nborder: {port: 9}\n",
        REGION="123",
        BORDER__PORT="10",
        BORDER__MODE="shadow",
        BORDER__SHARE="0.25",
        BORDER__STRICT="false",
        BORDER__NOTE="null",
        BORDER__SIGNING_KEY_FILE="/k",
    )
    assert settings.region == "123"
    assert settings.border == Border(
        port=10, mode=Mode.SHADOW, share=Decimal("0.25"), strict=False, note=None, signing_key_file=Path("/k")
    )


def test_a_section_that_the_file_leaves_out_can_come_from_the_environment(tmp_path: Path) -> None:
    assert load(tmp_path, "region: a\nborder:\n", BORDER__PORT="10").border.port == 10
    assert load(tmp_path, "region: a\n", BORDER__PORT="10").border.port == 10


@pytest.mark.parametrize(
    ("text", "env", "sentence"),
    [
        ("region: a\nborder:\n  port: x", {}, "edge.yaml:3: border.port: expected a whole number, got text"),
        ("region: a\nborder:\n  prt: 1", {}, "edge.yaml:3: border.prt: expected one of the fields host, port"),
        ("border: {}", {}, "edge.yaml:1: region: expected this field, which is missing"),
        ("region: a\nborder: {share: 0.5}", {}, "edge.yaml:2: border.share: write it as a quoted decimal"),
        ("region: a\nborder: {mode: off}", {}, "edge.yaml:2: border.mode: expected one of enforce, shadow"),
        ("", {}, "edge.yaml:1: expected a mapping of fields"),
        ("region: a", {"BORDER__PORT": "x"}, f"environment: {PREFIX}BORDER__PORT: expected a whole number, got text"),
        ("region: a", {"BORDER__PORT": "1.5"}, f"environment: {PREFIX}BORDER__PORT: write it as a quoted decimal"),
        ("region: a", {"BORDER__PORT": ""}, f"environment: {PREFIX}BORDER__PORT: expected a whole number, got null"),
        ("region: a", {"BORDER__MODE": "x"}, f"environment: {PREFIX}BORDER__MODE: expected one of enforce, shadow"),
        ("region: a", {"BORDER_PORT": "1"}, f"environment: {PREFIX}BORDER_PORT: expected a setting of this program"),
        ("region: a", {"BORDER__PORT__X": "1"}, f"environment: {PREFIX}BORDER__PORT__X: expected a setting of this"),
        ("region: a", {"REGIO": "1"}, f"environment: {PREFIX}REGIO: expected a setting of this program"),
        ("region: a", {"": "1"}, f"environment: {PREFIX}: expected a setting of this program"),
        ("region: a", {"border__port": "1"}, f"environment: {PREFIX}border__port: expected a setting of this program"),
        ("region: a", {"BORDER": "x"}, f"environment: {PREFIX}BORDER: expected it in the file"),
        ("region: a", {"STORES": "[]"}, f"environment: {PREFIX}STORES: expected it in the file"),
        ("region: a\nborder: 3", {"BORDER__PORT": "1"}, f"environment: {PREFIX}BORDER__PORT: expected a mapping"),
    ],
)
def test_a_refusal_is_one_sentence_with_its_place(
    tmp_path: Path, text: str, env: dict[str, str], sentence: str
) -> None:
    said = refusal(tmp_path, text, **env)
    assert said.startswith(sentence)
    assert "\n" not in said


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="expected a readable file"):
        load_settings(Settings, tmp_path / "none.yaml", {}, PREFIX)


def test_a_refusal_never_repeats_a_value(tmp_path: Path) -> None:
    assert "canary" not in refusal(tmp_path, "region: [canary]")
    assert "canary" not in refusal(tmp_path, "region: a", BORDER__PORT="canary")
    assert "canary" not in refusal(tmp_path, "region: a", BORDER__PASSWORD="canary")


def test_variables_of_others_are_left_alone(tmp_path: Path) -> None:
    links = {
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT_HTTPS": "443",
        "PORT": "tcp://10.0.0.1:443",
        "PORT_443_TCP": "tcp://10.0.0.1:443",
        "PORT_443_TCP_PROTO": "tcp",
        "PORT_443_TCP_PORT": "443",
        "PORT_443_TCP_ADDR": "fd00::1",
        "CONTROL_SERVICE_HOST": "10.0.0.1",
        "CONTROL_PORT": "tcp://10.0.0.1:443",
    }
    assert load(tmp_path, "region: a", CONFIG="/etc/x", LOG_LEVEL="info", **links) == Settings(region="a")
    path = write(tmp_path, "region: a")
    assert load_settings(Settings, path, {"PATH": "/bin", "TIDEGATE_OTHER_X": "1"}, PREFIX) == Settings(region="a")


def test_a_setting_that_is_named_like_a_service_link_is_a_setting(tmp_path: Path) -> None:
    assert load(tmp_path, "region: a", SERVICE_PORT="9").service_port == 9


def test_a_misspelt_setting_does_not_pass_as_a_service_link(tmp_path: Path) -> None:
    assert "expected a setting" in refusal(tmp_path, "region: a", BORDER_PORT="443")


def test_settings_types_must_be_frozen_and_strict(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="frozen"):
        load_settings(HoldsThawed, write(tmp_path, "inner: {}"), {}, PREFIX)


def test_a_secret_cannot_stand_in_a_settings_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="expected no secret here") as caught:
        load_settings(HoldsSecret, write(tmp_path, "seal: canary"), {}, PREFIX)
    assert "canary" not in str(caught.value)


def test_the_effective_settings_mask_secrets_and_show_the_rest(tmp_path: Path) -> None:
    text = """
region: no
stores:
- endpoints: ["https://user:canary1@etcd:2379", "http://plain:1/@x"]
  api_token: canary2
  options: {limit: 3, shared_secret: 4}
"""
    shown = render_effective(load(tmp_path, text))
    assert "canary" not in shown
    value = load_document(shown, "shown").value
    assert value["region"] == "no"
    assert value["border"] == {
        "host": "127.0.0.1",
        "port": 8443,
        "mode": "enforce",
        "share": "0.05",
        "note": None,
        "strict": True,
        "signing_key_file": None,
    }
    assert value["stores"] == [
        {
            "endpoints": ["https://(secret)@etcd:2379", "http://plain:1/@x"],
            "api_token": "(secret)",
            "options": {"limit": 3, "shared_secret": "(secret)"},
        }
    ]
    assert render_effective(HoldsSecret(Secret("canary3"))) == "seal: (secret)\n"


def test_the_effective_settings_can_be_loaded_again(tmp_path: Path) -> None:
    settings = load(tmp_path, 'region: "yes"\nborder: {note: "a: b\\n#c", share: "1.50", host: "::1"}')
    assert load(tmp_path, render_effective(settings)) == settings


def test_a_program_with_bad_settings_ends_with_status_2_and_one_sentence(tmp_path: Path) -> None:
    def main() -> int:
        load_settings(Settings, write(tmp_path, "region: 5"), {}, PREFIX)
        return 0

    stderr = io.StringIO()
    assert run_program(main, stderr) == 2
    assert stderr.getvalue() == f"{tmp_path}/edge.yaml:1: region: expected text, got a whole number\n"


def test_a_program_with_a_bad_file_or_secret_ends_the_same_way(tmp_path: Path) -> None:
    def bad_pack() -> None:
        load_document("a: *b", "packs/cn.yaml")

    def bad_secret() -> None:
        read_secret(tmp_path / "none")

    for main in (bad_pack, bad_secret):
        stderr = io.StringIO()
        assert run_program(main, stderr) == 2
        assert stderr.getvalue().count("\n") == 1


def test_a_program_gives_its_own_status_and_its_own_errors_pass() -> None:
    assert run_program(lambda: None) == 0
    assert run_program(lambda: 3) == 3

    def broken() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_program(broken, io.StringIO())
    assert issubclass(FileError, ValueError)
