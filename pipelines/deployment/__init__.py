"""Deploy candidates that passed their gates, roll deployments back, and run challengers in the shadow."""
