"""Classification: a model with a new head is fine-tuned on Portuguese tasks, with several seeds, and scored."""
