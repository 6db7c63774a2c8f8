"""The model file: one YAML file in `models/` that describes a model completely. Other packages import from here.

The file is parsed into frozen objects. The tables, the point-in-time read, the validation, the training, the schema of
requests and the DAGs are built from these objects. New keys have defaults, so the specs of old versions stay valid.
"""

from pipelines.spec.load import find_spec, load_spec, model_names
from pipelines.spec.model_spec import ModelSpec
from pipelines.spec.sections import (
    IDENTIFIER,
    Categorical,
    Drift,
    EntitySplit,
    Feature,
    Gates,
    Numeric,
    Retrain,
    Severity,
    Space,
    Validation,
)
from pipelines.spec.values import METRICS, margin_at

__all__ = [
    "IDENTIFIER",
    "METRICS",
    "Categorical",
    "Drift",
    "EntitySplit",
    "Feature",
    "Gates",
    "ModelSpec",
    "Numeric",
    "Retrain",
    "Severity",
    "Space",
    "Validation",
    "find_spec",
    "load_spec",
    "margin_at",
    "model_names",
]
