"""Cleaning: the steps of the corpus stage that look at one document, as functions of its text."""
