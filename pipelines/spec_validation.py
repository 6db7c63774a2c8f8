"""The keys of a model file that say which broken rules stop a training, and which are only told."""

from typing import Literal

from pipelines.spec_types import Frozen

Severity = Literal["error", "warning"]


class Validation(Frozen):
    """What becomes of a broken rule: an error stops the training, a warning stands in the report.

    A column that is missing or of another type, and a label that is missing or no class, are errors always: nothing can
    be learned from them. Warnings by default are what the gates catch anyway, or what the world may well do.
    """

    ranges: Severity = "error"  # a number outside min and max
    values: Severity = "error"  # a category that `values` does not list
    duplicates: Severity = "error"  # two rows of one entity and time
    empty: Severity = "error"  # a feature without any value
    constant: Severity = "warning"  # a feature with one value in every row
    leak: Severity = "error"  # a feature that alone tells the label
    null_share: Severity = "error"  # a feature is missing in far more rows than in the last training
    lost_class: Severity = "error"  # a class that the last training had is gone
    target: Severity = "warning"  # the label is distributed otherwise than in the last training
    row_count: Severity = "warning"  # too few rows to judge a candidate, or half of the last training's
    freshness: Severity = "warning"  # the newest labels or features are older than their own rhythm explains
