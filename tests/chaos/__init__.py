"""`make chaos`: the real service under traffic while everything around it breaks, and the account of every request."""
