"""How a training starts: which ranks, on which machines, as which processes, and how they end together."""
