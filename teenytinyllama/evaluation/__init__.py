"""Numbers about a model: bits per byte and perplexity on held-out documents. Takes a model, never trains one."""
