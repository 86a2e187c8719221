"""Secrets: which files are accepted, and that nothing shows one by accident."""

from __future__ import annotations

import copy
import os
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.config.secret import SECRET_BYTES_MAX, Secret, SettingsError, read_secret

CANARY = "canary90210"


def secret_file(folder: Path, body: bytes = CANARY.encode(), mode: int = 0o400) -> Path:
    path = folder / "key"
    path.write_bytes(body)
    path.chmod(mode)
    return path


def test_a_secret_is_the_text_without_its_line_end(tmp_path: Path) -> None:
    assert read_secret(secret_file(tmp_path, b"abc\r\n")).reveal() == "abc"
    pem = b"-----BEGIN X-----\nYQ==\n-----END X-----\n"
    (tmp_path / "key").unlink()
    assert read_secret(secret_file(tmp_path, pem)).reveal() == pem.decode().rstrip()


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o500])
def test_files_of_this_user_alone_are_accepted(tmp_path: Path, mode: int) -> None:
    assert read_secret(secret_file(tmp_path, mode=mode)) == Secret(CANARY)


@pytest.mark.parametrize("mode", [0o440, 0o604, 0o644, 0o620, 0o602, 0o401, 0o666])
def test_files_that_others_can_read_are_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(SettingsError, match=f"mode 0400, got {mode:04o}"):
        read_secret(secret_file(tmp_path, mode=mode))


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may pass through, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away and act as another user")
def test_the_group_may_read_a_file_of_root_as_kubernetes_mounts_it(open_folder: Path) -> None:
    path = secret_file(open_folder)

    def read_as_pod(owner: int, mode: int) -> Secret:
        os.chown(path, owner, 4242)
        path.chmod(mode)
        os.seteuid(4242)
        try:
            return read_secret(path)
        finally:
            os.seteuid(0)

    groups = os.getgroups()
    os.setgroups([4242])
    try:
        assert read_as_pod(0, 0o440).reveal() == CANARY
        with pytest.raises(SettingsError, match="others cannot read"):
            read_as_pod(0, 0o444)
        with pytest.raises(SettingsError, match="others cannot read"):
            read_as_pod(4242, 0o440)
        with pytest.raises(SettingsError, match="belongs to this user or to root"):
            read_as_pod(4243, 0o440)
    finally:
        os.setgroups(groups)


@pytest.mark.parametrize("body", [b"", b"\n", b"a\x00b", b"\xff\xfe" + CANARY.encode(), b"a\tb", b"a\x1b[0m"])
def test_what_is_no_text_is_refused_without_showing_it(tmp_path: Path, body: bytes) -> None:
    with pytest.raises(SettingsError) as caught:
        read_secret(secret_file(tmp_path, body))
    failure: BaseException | None = caught.value
    while failure is not None:
        assert CANARY not in f"{failure!r} {vars(failure)}"
        failure = failure.__cause__ or failure.__context__


def test_a_link_is_followed_to_the_file_it_names(tmp_path: Path) -> None:
    """Kubernetes mounts each secret as a link to a link."""
    target = secret_file(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(target)
    assert read_secret(link).reveal() == CANARY
    target.chmod(0o644)
    with pytest.raises(SettingsError):
        read_secret(link)


def test_folders_pipes_and_large_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="expected a regular file"):
        read_secret(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(SettingsError, match="regular file"):
        read_secret(tmp_path / "pipe")
    with pytest.raises(SettingsError, match="at most"):
        read_secret(secret_file(tmp_path, b"a" * (SECRET_BYTES_MAX + 1)))
    with pytest.raises(SettingsError, match="readable secret file"):
        read_secret(tmp_path / "none")


def test_nothing_shows_a_secret() -> None:
    secret = Secret(CANARY)
    assert secret.reveal() == CANARY
    assert CANARY not in f"{secret} {secret!r} {[secret]} {secret!s:>40}"
    for leak in (lambda: pickle.dumps(secret), lambda: copy.deepcopy(secret), lambda: hash(secret)):
        with pytest.raises(TypeError):
            leak()
    assert secret != CANARY
    assert secret != Secret("canary90211")
