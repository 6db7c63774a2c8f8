"""Between the socket and an endpoint: connections, limits, keys, and the shape of answers."""
