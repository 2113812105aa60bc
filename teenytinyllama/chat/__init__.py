"""Conversations with a model: the template, the tokens, the texts it writes, the terminal and the page."""
