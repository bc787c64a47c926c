"""The machine's load during a sweep."""

import logging
from typing import Any

from lrsweep.tracking.store import one_line

log = logging.getLogger(__name__)


class SystemMetrics:
    """Samples MLflow's monitors of CPU, memory, disk, network and, with nvidia-ml-py, GPU.

    A monitor that fails is dropped. MLflow's own thread for them stops for good when the server fails once, so the
    tracker's thread samples them instead.

    Args:
        uri: The store's tracking URI.
        run_id: MLflow's id of the sweep's parent run.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitors: list[Any] = []
        try:
            self._monitors += SystemMetricsMonitor(run_id, tracking_uri=uri).monitors
        except Exception as fault:
            log.info("no system metrics (%s)", one_line(fault))

    def sample(self) -> dict[str, float]:
        """Returns the current load by metric name, each prefixed with `system/`."""
        metrics: dict[str, float] = {}
        for monitor in list(self._monitors):
            try:
                monitor.collect_metrics()
                metrics |= {f"system/{key}": value for key, value in monitor.aggregate_metrics().items()}
                monitor.clear_metrics()
            # In a container a monitor may not find what it reads, and raise anything.
            except Exception as fault:
                self._monitors.remove(monitor)
                log.info("no more system metrics from %s (%s)", type(monitor).__name__, one_line(fault))
        return metrics
