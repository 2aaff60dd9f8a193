"""The ways in which messages are sent, by what a server offers and what the settings say."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

import pytest

from amail.testing import EXTENSIONS, FaultServer

DEPTH = 8
OFFERS = (*EXTENSIONS, "CHUNKING")


@dataclass(frozen=True)
class Mode:
    """Settings of a mailer. ``at_once``: small contents go out with their envelopes."""

    name: str
    settings: dict[str, t.Any] = field(default_factory=dict)
    says_data: bool = False
    at_once: bool = False

    @property
    def depth(self) -> int:
        """How many messages of a send_many have octets of their content on the wire at most."""
        return int(self.settings.get("pipeline_depth", 1))

    def server(self, **script: t.Any) -> FaultServer:
        """A server that offers all of it."""
        return FaultServer(extensions=OFFERS, **script)


MODES = [
    Mode("one_by_one", {"pipelining": False, "chunking": False}, says_data=True),
    Mode("pipelined", {"chunking": False}, says_data=True),
    Mode("lock_step_bdat", {"pipelining": False}),
    Mode("chunked", at_once=True),
    Mode("chunked_depth_8", {"pipeline_depth": DEPTH}, at_once=True),
]

in_every_mode = pytest.mark.parametrize("mode", MODES, ids=[mode.name for mode in MODES])
