"""The model file: one YAML file in `models/` describes a model completely. This package exports its public names.

The file is parsed once into frozen objects. They drive table creation, the point-in-time read, validation, the training
pools, the request schema and the DAGs. New keys have defaults, so every registered spec still parses.
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
