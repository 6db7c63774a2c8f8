"""The prediction log: ids, writing by the services, and reading."""
