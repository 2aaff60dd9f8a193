"""Celery with real brokers: what is lost and what is doubled when processes are killed."""
