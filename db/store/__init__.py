"""The feature store: its tables, loads into it, and reading it as it was known at a time."""
