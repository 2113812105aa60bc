"""Before a run: what can go wrong with it is looked for while it costs nothing (`ttl doctor`)."""
