"""`make chaos`: break parts of a running stack under traffic, and account for every request."""
