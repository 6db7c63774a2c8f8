"""The stages of a model's life, one sub-package per stage. `docs/architecture.md` has the rules for imports."""
