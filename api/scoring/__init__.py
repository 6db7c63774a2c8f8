"""The path from validated rows to answers: batches, look-ups in the store, and reasons."""
