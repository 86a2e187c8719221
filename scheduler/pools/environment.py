"""The environment that Ray reads at its import, for the programs that start a cluster and those that join one."""

from __future__ import annotations

from pathlib import Path

LOG_ROTATE_BYTES = 8 << 20
LOG_ROTATE_BACKUPS = 1


def ray_environment(token_file: Path, base: Path | None = None) -> dict[str, str]:
    """Return what must be in the environment before ``import ray``. `base` is Ray's own folder, for a cluster. Pure.

    Token authentication is off in this release unless asked for. Without ``RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER`` Ray
    rewrites loopback to the host's address, and a driver hangs.
    """
    found = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file.absolute()),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_ROTATION_MAX_BYTES": str(LOG_ROTATE_BYTES),
        "RAY_ROTATION_BACKUP_COUNT": str(LOG_ROTATE_BACKUPS),
        "GRPC_ENABLE_FORK_SUPPORT": "0",
        "GRPC_EXPERIMENTS": "",  # of ours it would get what it was not tried with
        "HF_HUB_OFFLINE": "1",
    }
    if base is not None:
        found["RAY_TMPDIR"] = str(base)
    return found
