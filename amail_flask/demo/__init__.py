"""``amail demo``: everything once, against a real SMTP server that it brings along."""
