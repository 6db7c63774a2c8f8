"""The version that a worker serves: fetching, checking and swapping it. And the challenger in the shadow."""
