"""Requests and answers: their types from the model file, repeated requests, and counts of refusals."""
