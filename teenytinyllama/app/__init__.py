"""`ttl app`: a page to talk with a model and to see how near its answers lie to the instruction data."""
