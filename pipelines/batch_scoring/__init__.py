"""Predictions for many rows at once, from a file or a query."""
