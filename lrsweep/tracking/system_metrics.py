"""The machine's load while a sweep runs."""

import logging
from typing import Any

from lrsweep.tracking.store import one_line

log = logging.getLogger(__name__)


class SystemMetrics:
    """MLflow's probes of CPU, memory, disk, network and, with nvidia-ml-py, GPU; one that fails is asked no more.

    MLflow's own thread for them gives up for good at a server's first fault, so the tracker's asks them instead.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._probes: list[Any] = []
        try:
            self._probes += SystemMetricsMonitor(run_id, tracking_uri=uri).monitors
        except Exception as fault:
            log.info("no system metrics (%s)", one_line(fault))

    def sample(self) -> dict[str, float]:
        """The load now, each name under `system/`."""
        metrics: dict[str, float] = {}
        for probe in list(self._probes):
            try:
                probe.collect_metrics()
                metrics |= {f"system/{key}": value for key, value in probe.aggregate_metrics().items()}
                probe.clear_metrics()
            # A container may hide what a probe reads, and says so in its own way.
            except Exception as fault:
                self._probes.remove(probe)
                log.info("no more system metrics from %s (%s)", type(probe).__name__, one_line(fault))
        return metrics
