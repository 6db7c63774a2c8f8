"""The demonstration: simulated people, and the platform's reaction to them."""
