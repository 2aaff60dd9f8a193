"""Measurements side by side with peers, one command a question. Never part of the tests."""
