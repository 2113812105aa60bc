"""`ttl lab`: many small runs of one grid, their tables and plots, and the scaling law fitted to them."""
