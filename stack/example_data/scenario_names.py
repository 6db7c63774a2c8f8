"""The names of the scenarios. They have a module of their own because `stack.example_data.scenarios` imports slowly."""

from enum import StrEnum


class Scenario(StrEnum):
    NONE = "none"
    COVARIATE = "covariate"
    CONCEPT = "concept"
    SHIFT = "shift"
    PRIOR = "prior"
    BROKEN = "broken"
