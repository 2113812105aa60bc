"""The corpus stage: raw pages and texts become a clean, documented, licensed corpus."""
