"""What is known of a metric follows from its row in the table, everywhere."""

from __future__ import annotations

from importlib import import_module
from typing import get_args

import numpy as np
import pytest

from app.metric_table import METRICS
from app.schemas.jobs import MetricName
from app.schemas.models import Gate
from app.schemas.predictions import ClassMeasurement
from app.store.tables import Measurement
from models.evaluate import better
from topology.metrics import measure

PARTS = {"voi_split", "voi_merge", "betti_matched", "betti_spurious", "betti_missing"}
PARTS |= {"adapted_rand_precision", "adapted_rand_recall", "branches_fragmented", "branches_missing"}
PARTS |= {"surface_dice", "average_surface_distance", "hausdorff", "topo_f1"}
"""Parts of figures, which `measure` tells and nobody keeps."""
BY_DIMENSION = ("topo_f1_{}", "patch_beta{}_error")
"""The same, one for each dimension of features."""

each_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
OF_ONE_CLASS = {name: metric for name, metric in METRICS.items() if not metric.needs_rules}


def masks(dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """A hollow box with a gap in its wall and a pixel too many, and the whole box."""
    reference = np.zeros((10,) * dimensions, bool)
    reference[(slice(2, 8),) * dimensions] = True
    reference[(slice(4, 6),) * dimensions] = False
    prediction = reference.copy()
    prediction[(slice(2, 4), *(slice(4, 6),) * (dimensions - 1))] = False
    prediction[(0,) * dimensions] = True
    return prediction, reference


@pytest.mark.parametrize("dimensions", [2, 3])
def test_what_is_measured_is_what_the_table_lists(dimensions):
    expected = {name for name, metric in OF_ONE_CLASS.items() if dimensions in metric.dimensions}
    parts = PARTS | {name.format(k) for name in BY_DIMENSION for k in range(dimensions)}
    assert set(measure(*masks(dimensions))) == expected | parts


@each_metric
def test_a_metric_is_computed_where_its_row_says(metric):
    module, _, function = metric.function.rpartition(".")
    assert callable(getattr(import_module(module), function))


@pytest.mark.parametrize("metric", OF_ONE_CLASS.values(), ids=OF_ONE_CLASS)
def test_a_worse_mask_has_a_worse_figure_in_the_direction_of_its_row(metric):
    prediction, reference = masks(2 if 2 in metric.dimensions else 3)
    worse, best = measure(prediction, reference)[metric.name], measure(reference, reference)[metric.name]
    assert (best > worse) if metric.better == "higher" else (best < worse)
    assert better(metric.name, best, worse) and not better(metric.name, worse, best)


def test_tables_and_schemas_hold_the_metrics_of_the_table():
    columns = {column.name: column.type.python_type for column in Measurement.__table__.columns}
    assert {name: columns.get(name) for name in METRICS} == {
        name: int if metric.counts else float for name, metric in METRICS.items()
    }
    assert list(METRICS) == [name for name in ClassMeasurement.model_fields if name in METRICS]
    assert {name for name in columns if name.endswith("_error")} <= set(METRICS)
    assert set(Gate.model_fields) == {"dataset", *(metric.bound for metric in METRICS.values())}
    assert set(get_args(MetricName)) == set(METRICS) - {"beta2_error", "rule_violations"}


def test_metric_fields_describe_unit_and_meaning():
    for name, field in ClassMeasurement.model_json_schema()["properties"].items():
        if name in METRICS:
            assert METRICS[name].meaning in field["description"] and METRICS[name].unit in field["description"]
