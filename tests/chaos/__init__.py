"""`make chaos`: break the parts around a real service under traffic, and account for every request."""
