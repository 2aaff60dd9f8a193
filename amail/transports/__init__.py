"""Ends that take an envelope and content, and what makes one of a URL."""
