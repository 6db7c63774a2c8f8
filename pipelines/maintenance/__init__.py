"""Nightly duties, and deletion of an entity from every place."""
