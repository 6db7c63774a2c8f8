"""The life of a model, a room a stage; `docs/architecture.md` has the floors."""
