"""The prediction service of one model."""
