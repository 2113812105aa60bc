"""Energy, emissions and money of a run: measured (meter), kept for all starts (ledger), reported (emissions)."""
