"""From validated rows to answers: batches, look-ups in the store, reasons."""
