"""The feature store: its tables, loads, and point-in-time reading."""
