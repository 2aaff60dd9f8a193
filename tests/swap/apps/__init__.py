"""Small apps around them. Each is a program of its own: ``python -m tests.swap.apps NAME``."""
