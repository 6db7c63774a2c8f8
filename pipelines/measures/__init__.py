"""Metrics, drift and defects: pure measures that training and monitoring share."""
