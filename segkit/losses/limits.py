"""Bounds on the options of losses."""

# With this limit, sums over the pixels of a batch, whose losses count as at most 2^64, are finite in float32.
LARGEST_OPTION = 1e12
