"""Downstream fine-tuning: a model with a classification head, on Portuguese tasks, over several seeds."""
