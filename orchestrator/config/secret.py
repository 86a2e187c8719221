"""Secrets: read from mounted files, never shown.

A secret file holds text: a token, hex, base64 or PEM. Line ends at its end are not part of the secret. Bytes that are
no text are refused, so that a key that happens to end in a line end is not cut silently.
"""

from __future__ import annotations

import hmac
import os
import stat
from pathlib import Path
from typing import NoReturn

SECRET_BYTES_MAX = 64 * 1024


class SettingsError(ValueError):
    """A program cannot start like this. Its text is one sentence: file or variable, key, what was expected."""

    def __init__(self, file: str, key: str, expected: str, line: int = 0) -> None:
        place = f"{file}:{line}" if line else file
        super().__init__(f"{place}: {key}: {expected}" if key else f"{place}: {expected}")
        self.file = file
        """The settings file, the secret file, or `environment`."""
        self.key = key
        """Path of the setting, or the name of the variable; empty for a whole file."""
        self.expected = expected
        self.line = line


class Secret:
    """A text that no repr, str, format or pickle shows. Comparison takes the same time wherever two secrets differ."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The secret itself. Call it where the secret is used, and keep no copy."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(...)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._text.encode(), other._text.encode())

    # A hash of a secret in a set or a dictionary would be one more way to test guesses.
    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret cannot be pickled or copied")


def read_secret(path: Path) -> Secret:
    """The secret in a mounted file. Raises SettingsError, which never holds any of it.

    The file must belong to this user or to root and grant others nothing. The group may read it only when the file is
    not this user's own: that is how Kubernetes mounts a secret for a pod with `fsGroup` (`defaultMode: 0400`).
    """
    try:
        # Kubernetes mounts secrets as symbolic links, so links are followed and the file itself is judged.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            _check_access(path, os.fstat(descriptor))
            body = _read(descriptor)
        finally:
            os.close(descriptor)
    except OSError as failure:
        raise SettingsError(str(path), "", f"expected a readable secret file ({failure.strerror})") from None
    if len(body) > SECRET_BYTES_MAX:
        raise SettingsError(str(path), "", f"expected a secret of at most {SECRET_BYTES_MAX} bytes")
    text: str | None
    try:
        text = body.decode("ascii").rstrip("\r\n")
    except UnicodeDecodeError:
        text = None
    # Raised outside the handler: the error of the codec holds the secret.
    if text is None or not text.replace("\n", "").replace("\r", "").isprintable():
        raise SettingsError(str(path), "", "expected text: a token, hex, base64 or PEM")
    if not text:
        raise SettingsError(str(path), "", "expected a secret, but the file is empty")
    return Secret(text)


def _read(descriptor: int) -> bytes:
    body = b""
    while len(body) <= SECRET_BYTES_MAX and (more := os.read(descriptor, SECRET_BYTES_MAX + 1)):
        body += more
    return body


def _check_access(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise SettingsError(str(path), "", "expected a regular file")
    if status.st_uid not in (os.geteuid(), 0):
        raise SettingsError(str(path), "", "expected a file that belongs to this user or to root")
    forbidden = 0o037 if status.st_uid != os.geteuid() else 0o077
    if status.st_mode & forbidden:
        mode = stat.S_IMODE(status.st_mode)
        raise SettingsError(
            str(path), "", f"expected a file that others cannot read, such as mode 0400, got {mode:04o}"
        )
