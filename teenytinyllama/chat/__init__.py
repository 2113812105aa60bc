"""Conversations: the template, the tokens of a conversation, the check of a chat model, the chat in the terminal."""
