"""The corpus stage: raw pages and texts become a clean, documented and licensed corpus (`ttl corpus`)."""
