"""Renderers: each turns the document, or the findings themselves, into one kind of file or screen."""
