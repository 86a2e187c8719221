"""What an edge tells its control plane of itself, for people to see."""

from __future__ import annotations

import time

from node_agent.uplink.routes import Routes
from orchestrator.bundles.assemble import Bundle
from orchestrator.bundles.blobs import PoolReport, Report, SessionReport
from orchestrator.placement.fleet import Pool
from orchestrator.policy.ids import EdgeId


def edge_report(
    edge: EdgeId, instance: str, listen: str, draining: bool, bundle: Bundle | None, routes: Routes
) -> Report:
    """Return how this edge sees its pools and sessions."""
    pools = () if bundle is None else bundle.fleet.pools
    drains = frozenset[str]() if bundle is None or bundle.settings is None else bundle.settings.drains
    return Report(
        role="edge",
        instance=instance,
        listen=listen,
        draining=draining,
        pools=tuple(_pool(edge, pool, pool.id in drains, routes) for pool in pools),
        sessions=tuple(
            SessionReport(
                session=state.session,
                peer=state.scheduler,
                state=state.state,
                epoch=state.epoch,
                streams=state.streams,
                rtt_ms=(state.rtt_us or 0) // 1000,
                skew_ms=state.skew_ms or 0,
            )
            for state in routes.sessions()
        ),
    )


def _pool(edge: EdgeId, pool: Pool, drained: bool, routes: Routes) -> PoolReport:
    if not pool.reachable(edge):
        return PoolReport(pool.id, "not_reachable")
    up, rtt_us, load, running = routes.view(pool, time.monotonic_ns() // 1000)
    up = up and (load is None or load.replicas > 0)
    state = "draining" if drained else "up" if up else "down"
    return PoolReport(
        pool=pool.id,
        state=state,
        replicas=0 if load is None else load.replicas,
        slots=pool.slots if load is None else load.slots,
        running=running if load is None else load.running,
        waiting=0 if load is None else load.waiting,
        rtt_ms=(rtt_us or 0) // 1000,
    )
