"""What services predicted, window by window, and whether it is time to train again."""
