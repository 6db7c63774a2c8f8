"""Metrics, drift and defects: pure functions that training and monitoring share."""
