"""The ways in which an example world can change. `stack.example_data.scenarios` knows how, and is slow to import."""

from enum import StrEnum


class Scenario(StrEnum):
    NONE = "none"
    COVARIATE = "covariate"
    CONCEPT = "concept"
    SHIFT = "shift"
    PRIOR = "prior"
    BROKEN = "broken"
