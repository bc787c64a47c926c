"""What MLflow's page of a sweep shows first: its charts, its columns, its order.

MLflow keeps such a view as a tag of the experiment, which a link names (its own "share" button does the same). The keys
are those of MLflow's ExperimentPageUIState.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lrsweep.config.search_space import LR

# The tag of a view, with its key, which links give as `viewStateShareKey`.
TAG = "mlflow.sharedViewState."
# MLflow's charts have no logarithmic axis for a parameter, so trials have this parameter too.
LOG_LR = f"{LR} log10"
# The most axes that get a chart of their own.
_MOST_AXES = 4
_SECTION = "sweep"


def with_log_lr(params: Mapping[str, object]) -> dict[str, object]:
    """A trial's parameters, with the logarithm of its learning rate."""
    lr = params.get(LR)
    known = isinstance(lr, int | float) and lr > 0
    return {**params, **({LOG_LR: round(math.log10(float(str(lr))), 4)} if known else {})}


def view(shown: str, axes: Sequence[str], metric: str, *, lowest_first: bool) -> str:
    """The view as MLflow's tag has it: curves, and the final metric over each axis.

    Args:
        shown: The filter of the runs.
        axes: The searched keys.
        metric: What trials are ranked by.
        lowest_first: Whether the lowest comes first, or the highest.
    """
    curves = list(dict.fromkeys([metric, "eval_loss", "loss", "grad_norm", "learning_rate"]))
    over = [LOG_LR if key == LR else key for key in axes][:_MOST_AXES]
    charts = [_curve(metric), *(_scatter(key, metric) for key in over), *map(_curve, curves[1:])]
    state = {
        "searchFilter": shown,
        "orderByKey": f"metrics.`{metric}`",
        "orderByAsc": lowest_first,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [*(f"params.`{key}`" for key in axes), f"metrics.`{metric}`", "tags.`diagnosis`"],
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": charts,
        "compareRunSections": [{"uuid": _SECTION, "name": "Sweep", "display": True, "isReordered": False}],
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": False,
        "groupBy": None,
        "autoRefreshEnabled": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        "chartsSearchFilter": "",
        **{key: {} for key in ("runsExpanded", "runsVisibilityMap", "groupsExpanded")},
        **{key: [] for key in ("runsPinned", "runsHidden")},
    }
    return json.dumps(state, separators=(",", ":"))


def _curve(metric: str) -> dict[str, Any]:
    return {
        **_card("LINE", metric),
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "lineSmoothness": 0,
        "scaleType": "linear",
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "useGlobalXaxisKey": True,
    }


def _scatter(key: str, metric: str) -> dict[str, Any]:
    axes = {"xaxis": {"key": key, "type": "PARAM"}, "yaxis": {"key": metric, "type": "METRIC"}}
    return _card("SCATTER", f"{metric} over {key}") | axes


def _card(kind: str, name: str) -> dict[str, Any]:
    own = {"type": kind, "uuid": name, "metricSectionId": _SECTION, "runsCountToCompare": 100}
    return own | {"deleted": False, "isGenerated": False}
