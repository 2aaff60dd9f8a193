"""Message -> Content: the only code that writes MIME. No network, no clock but for the Date."""

from amail.mime.content import Content, Stream
from amail.mime.raw import compose_raw
from amail.mime.render import compose

__all__ = ["Content", "Stream", "compose", "compose_raw"]
