"""Deploy a candidate that passed its gates, roll it back, and run a challenger in the shadow."""
