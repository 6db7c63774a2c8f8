"""The demonstration: simulated people, and what the platform makes of them."""
