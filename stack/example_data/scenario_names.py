"""The names of the scenarios. They are apart from `stack.example_data.scenarios`, which is slow to import."""

from enum import StrEnum


class Scenario(StrEnum):
    NONE = "none"
    COVARIATE = "covariate"
    CONCEPT = "concept"
    SHIFT = "shift"
    PRIOR = "prior"
    BROKEN = "broken"
