"""What we use of aiosmtplib, each attribute by its name, and how it lets go of a transport."""

from __future__ import annotations

import ast
import asyncio
import gc
import inspect
import socket
import typing as t
import weakref
from pathlib import Path

import aiosmtplib
import pytest

import amail
import amail_flask
from amail.testing import FaultServer

if t.TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

ERRORS = {
    "SMTPException",
    "SMTPHeloError",
    "SMTPReadTimeoutError",
    "SMTPResponseException",
    "SMTPServerDisconnected",
    "SMTPTimeoutError",
}
OF_THE_MODULE = {"SMTP", *ERRORS}
OF_A_RESPONSE = {"code", "message"}
CONSTRUCTOR = {"hostname", "sock", "local_hostname", "start_tls", "use_tls", "tls_context"}
COROUTINES = {
    "connect": {"timeout"},
    "ehlo": {"timeout"},
    "helo": {"timeout"},
    "starttls": {"tls_context", "timeout"},
    "execute_command": {"timeout"},
}
METHODS = {"supports_extension", "get_transport_info", "close"}
DATA = {"transport", "protocol", "esmtp_extensions", "server_auth_methods"}

ROOT = Path(amail.__file__).parent
SESSION = ROOT / "smtp" / "session.py"


@pytest.fixture(scope="module")
def tree() -> ast.Module:
    return ast.parse(SESSION.read_text("utf-8"))


def attributes_of(tree: ast.Module, name: str) -> set[str]:
    """The attributes that are looked up on a name."""
    return {node.attr for node in attribute_nodes(tree) if is_name(node.value, name)}


def attribute_nodes(tree: ast.Module) -> Iterator[ast.Attribute]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))


def is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def calls_on(tree: ast.Module, name: str) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=found), attr=attribute)):
                if found == name:
                    yield attribute, node


# We use no more than is named above


def test_no_other_module_imports_aiosmtplib() -> None:
    importing = set()
    paths = [*ROOT.rglob("*.py"), *Path(amail_flask.__file__).parent.rglob("*.py")]
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in getattr(node, "names", ())] if is_import(node) else []
            names.append(getattr(node, "module", None) or "")
            if any(name.partition(".")[0] == "aiosmtplib" for name in names):
                importing.add(path)
            dynamic = isinstance(node, ast.Constant) and node.value == "aiosmtplib"
            assert not dynamic, f"{path} names aiosmtplib in a string"
    assert len(paths) > 30
    assert importing == {SESSION}


def is_import(node: ast.AST) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def test_of_the_module_only_these_names_are_used(tree: ast.Module) -> None:
    assert attributes_of(tree, "aiosmtplib") == OF_THE_MODULE


def test_of_a_session_object_only_these_attributes_are_used(tree: ast.Module) -> None:
    assert attributes_of(tree, "smtp") == {*COROUTINES, *METHODS, *DATA}


def test_of_an_exception_only_code_and_message_are_used(tree: ast.Module) -> None:
    ours = amail.SendError()
    used = {name for name in attributes_of(tree, "error") if not hasattr(ours, name)}
    assert used == OF_A_RESPONSE


def test_of_a_response_only_code_and_message_are_used(tree: ast.Module) -> None:
    assert attributes_of(tree, "response") == OF_A_RESPONSE
    assert set(aiosmtplib.SMTPResponse._fields) >= OF_A_RESPONSE


def test_a_session_object_has_one_name_and_no_other(tree: ast.Module) -> None:
    """So that looking for that name finds every use."""
    parameters = [node for node in ast.walk(tree) if isinstance(node, ast.arg) and node.annotation]
    holders = {
        node.arg
        for node in parameters
        if node.annotation and ast.unparse(node.annotation) == "aiosmtplib.SMTP"
    }
    assigned = {
        ast.unparse(target)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and "aiosmtplib.SMTP(" in ast.unparse(node.value)
        for target in node.targets
    }
    assert holders == assigned == {"smtp"}
    handed_on = [
        argument
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        for argument in node.args
        if is_name(argument, "smtp")
    ]
    looked_up = [node for node in attribute_nodes(tree) if is_name(node.value, "smtp")]
    uses = [node for node in ast.walk(tree) if is_name(node, "smtp")]
    assert len(uses) == len(handed_on) + len(looked_up) + 1, "once it is assigned"


def test_it_is_called_with_these_keywords_only(tree: ast.Module) -> None:
    constructors = [call for name, call in calls_on(tree, "aiosmtplib") if name == "SMTP"]
    assert len(constructors) == 1
    assert {keyword.arg for keyword in constructors[0].keywords} == CONSTRUCTOR
    assert not constructors[0].args
    called = {name: call for name, call in calls_on(tree, "smtp") if name in COROUTINES}
    assert {
        name: {keyword.arg for keyword in call.keywords} for name, call in called.items()
    } == COROUTINES


def test_no_private_attribute_is_used(tree: ast.Module) -> None:
    used = attributes_of(tree, "smtp") | attributes_of(tree, "aiosmtplib")
    assert not [name for name in used if name.startswith("_")]


# It has what we use


def test_the_names_are_public() -> None:
    assert set(aiosmtplib.__all__) >= OF_THE_MODULE


def test_the_keywords_exist() -> None:
    assert set(inspect.signature(aiosmtplib.SMTP).parameters) >= CONSTRUCTOR
    for name, keywords in COROUTINES.items():
        method = getattr(aiosmtplib.SMTP, name)
        assert inspect.iscoroutinefunction(method), name
        assert set(inspect.signature(method).parameters) >= keywords
    for name in METHODS:
        assert not inspect.iscoroutinefunction(getattr(aiosmtplib.SMTP, name)), name


def test_the_data_exists_before_a_session_is_open() -> None:
    smtp = aiosmtplib.SMTP()
    assert (smtp.transport, smtp.protocol) == (None, None)
    assert (smtp.esmtp_extensions, smtp.server_auth_methods) == ({}, [])


def test_the_exceptions_are_related_as_we_tell_them_apart() -> None:
    for name in ERRORS:
        assert issubclass(getattr(aiosmtplib, name), aiosmtplib.SMTPException)
    assert issubclass(aiosmtplib.SMTPHeloError, aiosmtplib.SMTPResponseException)
    assert issubclass(aiosmtplib.SMTPAuthenticationError, aiosmtplib.SMTPResponseException)
    assert issubclass(aiosmtplib.SMTPConnectResponseError, aiosmtplib.SMTPResponseException)
    assert issubclass(aiosmtplib.SMTPReadTimeoutError, aiosmtplib.SMTPTimeoutError)
    assert issubclass(aiosmtplib.SMTPConnectTimeoutError, aiosmtplib.SMTPTimeoutError)
    assert not issubclass(aiosmtplib.SMTPTimeoutError, aiosmtplib.SMTPResponseException)
    assert not issubclass(aiosmtplib.SMTPServerDisconnected, aiosmtplib.SMTPResponseException)
    error = aiosmtplib.SMTPResponseException(550, "no")
    assert (error.code, error.message) == (550, "no")


# The take-over


def test_we_let_go_in_the_order_that_is_proved_below(tree: ast.Module) -> None:
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    made = "transport, self._socket, self._extensions, self._settings, self._manners"
    assert body_of(classes["_Opening"], "_take_over")[-4:] == [
        f"session = Session({made}, trace=self._trace)",
        "smtp.transport = None",
        "smtp.close()",
        "return session",
    ]
    assert "transport.set_protocol(self._protocol)" in body_of(classes["Session"], "__init__")


def body_of(owner: ast.ClassDef, name: str) -> list[str]:
    (function,) = [
        node for node in owner.body if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    return [ast.unparse(statement) for statement in function.body]


class Lines(asyncio.Protocol):
    """A protocol that collects what comes."""

    def __init__(self) -> None:
        self.received = b""
        self.came = asyncio.Event()
        self.lost = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.came.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with FaultServer() as running:
        yield running


async def opened(server: FaultServer) -> tuple[aiosmtplib.SMTP, asyncio.Transport]:
    connected = socket.create_connection((server.host, server.port))
    connected.setblocking(False)
    smtp = aiosmtplib.SMTP(sock=connected, local_hostname="client.test", start_tls=False)
    await smtp.connect(timeout=5)
    await smtp.ehlo(timeout=5)
    assert isinstance(smtp.transport, asyncio.Transport)
    return smtp, smtp.transport


async def test_after_the_take_over_the_transport_is_open_and_ours(server: FaultServer) -> None:
    smtp, transport = await opened(server)
    ours = Lines()
    transport.set_protocol(ours)
    smtp.transport = None
    smtp.close()
    assert not transport.is_closing()
    assert transport.get_protocol() is ours
    transport.write(b"NOOP\r\n")
    await ours.came.wait()
    assert ours.received == b"250 2.0.0 ok\r\n"
    transport.close()
    await ours.lost
    await server.all_closed()
    assert [command.line for command in server.commands] == ["EHLO client.test", "NOOP"]
    assert server.violations == []


async def test_after_the_take_over_nothing_keeps_its_object_alive(server: FaultServer) -> None:
    smtp, transport = await opened(server)
    ours = Lines()
    gone = weakref.ref(smtp)
    gc.disable()
    try:
        transport.set_protocol(ours)
        smtp.transport = None
        smtp.close()
        del smtp
        await asyncio.sleep(0)
        assert gone() is None
    finally:
        gc.enable()
        transport.abort()
        await ours.lost


async def test_closing_it_before_it_let_go_closes_the_transport(server: FaultServer) -> None:
    """This is why the order matters."""
    smtp, transport = await opened(server)
    ours = Lines()
    transport.set_protocol(ours)
    smtp.close()
    assert transport.is_closing()
    await ours.lost


async def test_what_an_extension_is_called_and_how_it_is_asked_for(server: FaultServer) -> None:
    smtp, transport = await opened(server)
    assert smtp.supports_extension("pipelining")
    assert not smtp.supports_extension("starttls")
    assert smtp.esmtp_extensions["size"] == "52428800"
    assert {"8bitmime", "smtputf8"} <= set(smtp.esmtp_extensions)
    assert smtp.get_transport_info("peername") == (server.host, server.port)
    transport.abort()
    await server.all_closed()


async def test_auth_methods_are_in_lower_case() -> None:
    async with FaultServer(users={"ada": "secret"}) as server:
        smtp, transport = await opened(server)
        assert smtp.server_auth_methods == ["plain", "login"]
        transport.abort()
        await server.all_closed()
