"""Monitor the services' predictions window by window, and decide whether to retrain."""
