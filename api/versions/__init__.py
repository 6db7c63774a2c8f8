"""Which version a worker serves: fetching, checking and swapping it, and one in the shadow."""
