"""Checkpoints: what makes one whole, how a run saves them and resumes, and the optimizer's state in them."""
