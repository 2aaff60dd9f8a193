"""Compose mail and send it, on asyncio."""
