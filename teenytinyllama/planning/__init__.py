"""Planning: which model a budget buys, before anything is spent. It is arithmetic and imports no training."""
