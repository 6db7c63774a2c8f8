"""The path from the socket to an endpoint: connections, limits, keys and responses."""
