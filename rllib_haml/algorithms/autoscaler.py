"""Whether nodes may still join a Ray cluster by themselves."""

from __future__ import annotations

import json
import time

from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get

# Ray's monitor writes its report every 5 s, the first one some seconds after the head has started.
_REPORT = "__autoscaling_status"
_PATIENCE_S = 8.0


def autoscaler_is_on() -> bool:
    """Whether an autoscaler may add nodes to the Ray that this process is connected to.

    Version 1, `ray up`'s, reports the type of each node. Where nobody scales Ray's monitor writes the same
    report, each node with a type of its own that is made of its id: that is sure. Version 2, KubeRay's,
    reports nothing of the kind, with or without scaling, and counts as on. A cluster without a report (its
    head started with `--no-monitor`) counts as off.
    """
    if is_autoscaler_v2(fetch_from_server=True):
        return True
    deadline = time.monotonic() + _PATIENCE_S
    while (types := _node_types(_internal_kv_get(_REPORT))) is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return any(node_type != f"node_{node}" for node, node_type in types.items())


def _node_types(report: bytes | None) -> dict[str, str] | None:
    """Node -> type in a report of version 1, None as long as nodes are missing from it."""
    summary = json.loads(report).get("autoscaler_report") if report else None
    return (summary["node_type_mapping"] or None) if summary else None
