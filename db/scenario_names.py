"""The ways in which an example world can change. Apart from `db.scenarios`, which knows how and is slow to import."""

from enum import StrEnum


class Scenario(StrEnum):
    NONE = "none"
    COVARIATE = "covariate"
    CONCEPT = "concept"
    SHIFT = "shift"
    PRIOR = "prior"
    BROKEN = "broken"
