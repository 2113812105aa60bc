"""Training with the Hugging Face Trainer: configs, pretraining, callbacks, checkpoints."""
