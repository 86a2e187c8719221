"""The Ray driver of a site: keeps the declared replicas placed. A process of its own beside the intake, never in it.

It joins the cluster of the site by address and never starts one. Each replica is a detached, named actor that Ray puts
on a node with the declared labels and restarts for ever; a selector that no node meets leaves it pending, never placed
elsewhere. The driver makes what is missing and removes what is no longer declared. Replicas outlive it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scheduler.pools.engine.process import ENVIRONMENT
from scheduler.pools.environment import ray_environment
from scheduler.pools.replica import Replica, ReplicaSpec
from scheduler.settings import PoolSettings, RaySettings, SchedulerSettings

WATCH_S = 1.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """One replica as declared."""

    spec: ReplicaSpec
    cpus: int


def wanted_replicas(settings: SchedulerSettings, token: str) -> dict[str, Wanted]:
    """Return every declared replica by its name. Pure."""
    found: dict[str, Wanted] = {}
    for pool in settings.pools:
        for number in range(0 if pool.replicas is None else pool.replicas.count):
            wanted = _wanted(settings, pool, number, token)
            found[wanted.spec.replica] = wanted
    return found


def _wanted(settings: SchedulerSettings, pool: PoolSettings, number: int, token: str) -> Wanted:
    replicas = pool.replicas
    if replicas is None:
        raise ValueError("the pool declares no replicas")
    spec = ReplicaSpec(
        replica=f"{pool.id}-{number}",
        pool=pool.id,
        model=replicas.model,
        model_dir=replicas.model_dir,
        intake=settings.replica_listen,
        token=token,
        slots=replicas.slots,
        waiting_max=replicas.slots,
        context_tokens=replicas.context_tokens,
        threads=replicas.threads,
        node_labels=dict(replicas.node_labels),
    )
    return Wanted(spec, replicas.cpus)


class Driver:
    """Keeps the declared replicas placed on one cluster."""

    def __init__(self, settings: SchedulerSettings, ray: RaySettings, token: str, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._ray_settings = ray
        self._wanted = wanted_replicas(settings, token)
        self._say = say
        self._handles: dict[str, Any] = {}
        self._joined: str | None = None

    def has_moved(self) -> bool:
        """Whether the site has another cluster than the one that was joined. Ray's calls may hang then."""
        return self._joined is not None and self._address() not in (None, self._joined)

    def _address(self) -> str | None:
        """Return where the cluster of the site is; None where nobody says."""
        try:
            return Path(self._ray_settings.address_file).read_text(encoding="utf-8").strip() or None
        except FileNotFoundError:
            return None

    def run(self, stopped: threading.Event) -> None:
        """Join, then watch until `stopped`. Blocks; raises what ray raises when the cluster is gone."""
        import ray  # the environment must be set first

        address = self._address()
        if address is None:
            raise FileNotFoundError(self._ray_settings.address_file)
        self._joined = address
        ray.init(
            address=address,
            namespace=f"{self._ray_settings.namespace}-{self._settings.id}",
            log_to_driver=False,
            logging_level="ERROR",
            configure_logging=False,
        )
        self._say(f"joined the Ray cluster of {self._settings.id}")
        while not stopped.wait(WATCH_S):
            self._remove_undeclared(ray)
            for name, wanted in self._wanted.items():
                self._ensure(ray, name, wanted)

    def _ensure(self, ray: Any, name: str, wanted: Wanted) -> None:
        """Make the replica where it is missing or has died for good."""
        try:
            self._handles[name] = ray.get_actor(name)
            return
        except ValueError:
            pass  # no living actor of this name
        actor = ray.remote(Replica)
        self._handles[name] = actor.options(
            name=name,
            lifetime="detached",
            num_cpus=wanted.cpus,
            max_restarts=-1,
            max_task_retries=0,
            label_selector=dict(wanted.spec.node_labels),
            runtime_env={"env_vars": dict(ENVIRONMENT)},  # read by torch when the replica first imports it
        ).remote(wanted.spec)
        self._say(f"replica {name} placed with labels {_labels(wanted.spec.node_labels)}")

    def _remove_undeclared(self, ray: Any) -> None:
        for name in ray.util.list_named_actors():
            if name not in self._wanted:
                ray.kill(ray.get_actor(name), no_restart=True)
                self._say(f"replica {name} is no longer declared and was removed")


def _labels(labels: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(labels.items()))


def set_environment(ray: RaySettings) -> None:
    """Put Ray's environment in place for this process. Raises RuntimeError when ray was imported already."""
    if "ray" in sys.modules:
        raise RuntimeError("ray was imported before its environment was set")
    os.environ.pop("RAY_ADDRESS", None)  # an address in the environment would win over ours
    os.environ.update(ray_environment(Path(ray.token_file)))
