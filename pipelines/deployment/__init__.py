"""From a candidate that passed its gates to the version that serves, and what runs in its shadow."""
