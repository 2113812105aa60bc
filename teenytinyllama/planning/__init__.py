"""Plans: which model a budget buys, before anything is spent. Arithmetic alone: nothing here loads torch."""
