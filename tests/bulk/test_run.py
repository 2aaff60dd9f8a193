"""A run: who gets the letter, who does not get it again, and what stops it."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import typing as t
from pathlib import Path

import pytest

from amail import (
    AuthenticationError,
    ConfigError,
    ConnectError,
    DeliveryUnknown,
    MailError,
    MemoryTransport,
    MessageRejected,
    Reply,
    RoundRobin,
    Vetoed,
)
from amail.bulk import JournalError, Letter, Progress, RecipientsError
from amail.testing import OK, ByMessage, Close, FaultServer, Hang
from tests.bulk.lists import (
    At,
    address,
    addresses,
    copies_in,
    events_of,
    rows,
    send_to,
    write_list,
)
from tests.messages import ADA
from tests.transports.ends import End

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.musts import Musts


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def rejected() -> MessageRejected:
    reply = Reply(550, "5.1.1", "no such user")
    return MessageRejected("no", stage="final", reply=reply)


def unknown() -> DeliveryUnknown:
    return DeliveryUnknown("no reply", stage="final")


def down() -> ConnectError:
    return ConnectError("refused", stage="connect", retryable=True)


# Each one copy


async def test_each_gets_the_letter_in_their_own_words_once(journal: Path) -> None:
    end = MemoryTransport()
    report = await send_to(end, rows(1, 2, 3), journal)
    assert report.all_accepted
    assert report.progress.accepted == 3
    contents = [bytes(each.content) for each in end.messages]
    assert [b"Subject: Hello Reader %d\r\n" % n in c for n, c in enumerate(contents, 1)] == [
        True
    ] * 3
    assert [b"To: Reader %d <reader%d@" % (n, n) in c for n, c in enumerate(contents, 1)] == [
        True
    ] * 3


async def test_the_same_again_sends_nothing(journal: Path) -> None:
    end = MemoryTransport()
    await send_to(end, rows(1, 2, 3), journal)
    report = await send_to(end, rows(1, 2, 3), journal)
    assert len(end.messages) == 3
    assert report.all_accepted
    assert report.progress.accepted == 3


async def test_whoever_is_new_in_the_list_is_sent_to(journal: Path) -> None:
    end = MemoryTransport()
    await send_to(end, rows(1, 2), journal)
    await send_to(end, rows(2, 3, 1), journal)
    assert copies_in(end) == dict.fromkeys(addresses([1, 2, 3]), 1)


async def test_a_duplicate_is_skipped_and_named(journal: Path) -> None:
    end = MemoryTransport()
    twice = [*rows(1, 2), {"email": "reader1@EXAMPLE.org", "name": "The same"}, *rows(2)]
    report = await send_to(end, twice, journal)
    assert copies_in(end) == dict.fromkeys(addresses([1, 2]), 1)
    assert report.progress.duplicates == 2
    assert [(each["line"], each["to"]) for each in report.skipped()] == [
        (3, address(1)),
        (4, address(2)),
    ]
    assert report.all_accepted


async def test_a_local_part_in_another_case_is_another_mailbox(journal: Path) -> None:
    end = MemoryTransport()
    await send_to(
        end, [{"email": each, "name": ""} for each in ("bob@x.org", "Bob@x.org")], journal
    )
    assert len(end.messages) == 2


async def test_rows_that_cannot_be_used_stop_nobody_and_are_sent_once_corrected(
    journal: Path,
) -> None:
    end = MemoryTransport()
    bad = [{"email": "no address", "name": "x"}, {"email": address(2)}, *rows(3)]
    report = await send_to(end, bad, journal)
    assert not report.all_accepted
    assert report.progress.invalid == 2
    first, second = report.skipped()
    assert first["line"] == 1
    assert "column 'email'" in first["text"]
    assert second["text"] == "subject: UndefinedError: 'name' is undefined"
    report = await send_to(end, rows(1, 2, 3), journal)
    assert report.all_accepted
    assert report.progress.invalid == 0
    assert copies_in(end) == dict.fromkeys(addresses([1, 2, 3]), 1)


async def test_what_only_composing_refuses_is_invalid_and_tried_again(journal: Path) -> None:
    end = MemoryTransport()
    letter = Letter("{{ title }}", text="...", sender=ADA)
    too_long = [{"email": address(1), "title": "x" * 5000}]
    report = await send_to(end, too_long, journal, letter)
    assert report.progress.invalid == 1
    assert not report.all_accepted
    assert [each["to"] for each in report.skipped()] == [address(1)]
    report = await send_to(end, [{"email": address(1), "title": "x"}], journal, letter)
    assert len(end.messages) == 1
    assert report.all_accepted


# Before and after the wire


async def test_begin_is_on_disk_before_the_message_is_handed_out(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk = b""
    fsync = os.fsync

    def noting(descriptor: int) -> None:
        nonlocal on_disk
        fsync(descriptor)
        if journal.exists():
            on_disk = journal.read_bytes()

    monkeypatch.setattr(os, "fsync", noting)
    seen: list[bool] = []

    def look(to: str) -> None:
        begin = f'"event": "begin", "to": "{to}"'.encode()
        seen.append(begin in on_disk[: on_disk.rfind(b"\n")])

    await send_to(At(look), rows(*range(20)), journal)
    assert seen == [True] * 20


async def test_no_more_are_begun_than_are_sent_at_once_and_a_batch(journal: Path) -> None:
    most = 0

    def look(_: str) -> None:
        nonlocal most
        events = events_of(journal).values()
        most = max(most, sum(each == ["begin"] for each in events))

    await send_to(At(look, concurrency=4), rows(*range(60)), journal)
    assert 0 < most <= 4 * 4


async def test_the_journal_is_its_owners_only_and_says_no_secret(
    musts: Musts, journal: Path
) -> None:
    async with FaultServer(users={"ada": "canary-pa55word"}) as server:
        url = server.url.replace("//", "//ada:canary-pa55word@")
        await send_to(url, rows(1), journal)
    assert journal.stat().st_mode & 0o777 == 0o600
    assert "canary" not in journal.read_text()


# What is sent again


async def test_a_rejected_one_is_sent_again_only_where_asked_for(journal: Path) -> None:
    report = await send_to(End("one", rejected()), rows(1), journal)
    assert (report.progress.rejected, report.progress.accepted) == (1, 0)
    (entry,) = report.entries("rejected")
    assert (entry["code"], entry["reply"]) == ("550 5.1.1", "550 5.1.1 no such user")
    end = MemoryTransport()
    report = await send_to(end, rows(1), journal)
    assert not end.messages
    assert report.progress.rejected == 1
    report = await send_to(end, rows(1), journal, retry_rejected=True)
    assert len(end.messages) == 1
    assert (report.progress.rejected, report.progress.accepted) == (0, 1)


async def test_what_was_not_sent_is_sent_by_the_next_run(journal: Path) -> None:
    report = await send_to(End("one", down()), rows(1, 2), journal)
    assert report.progress.not_sent == 2
    end = MemoryTransport()
    report = await send_to(end, rows(1, 2), journal)
    assert len(end.messages) == 2
    assert report.all_accepted


async def test_an_unknown_one_is_sent_again_only_where_asked_for_with_the_same_octets(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = End("one", unknown())
    report = await send_to(first, rows(1), journal)
    assert [each["to"] for each in report.entries("unknown")] == [address(1)]
    end = MemoryTransport()
    assert (await send_to(end, rows(1), journal)).progress.unknown == 1
    assert not end.messages
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600)
    report = await send_to(end, rows(1), journal, resend_unknown=True)
    assert report.all_accepted
    (again,) = end.messages
    assert bytes(again.content) == bytes(first.tried[0][1])


async def test_one_that_was_begun_and_has_no_result_is_unknown(journal: Path) -> None:
    await send_to(MemoryTransport(), rows(1, 2), journal)
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text(
        "".join(line for line in lines if f'"accepted", "to": "{address(2)}' not in line)
    )
    end = MemoryTransport()
    report = await send_to(end, rows(1, 2), journal)
    assert (report.progress.accepted, report.progress.unknown) == (1, 1)
    assert [each["to"] for each in report.entries("unknown")] == [address(2)]
    assert not end.messages


@pytest.mark.parametrize("outcome", [rejected(), down(), Vetoed("no"), unknown()], ids=str)
async def test_an_unknown_one_stays_unknown_unless_a_copy_is_accepted(
    journal: Path, outcome: MailError
) -> None:
    await send_to(End("one", unknown()), rows(1), journal)
    report = await send_to(End("two", outcome), rows(1), journal, resend_unknown=True)
    assert report.progress.unknown == 1
    end = MemoryTransport()
    await send_to(end, rows(1), journal, retry_rejected=True)
    assert not end.messages


async def test_a_message_id_is_that_of_mailbox_and_run(tmp_path: Path) -> None:
    ends = MemoryTransport(), MemoryTransport()
    for number, end in enumerate(ends):
        await send_to(end, rows(1, 2), tmp_path / str(number))
    ids = [[each.content.message_id for each in end.messages] for end in ends]
    assert len({*ids[0], *ids[1]}) == 4
    assert all(each.endswith("@example.com>") for each in ids[0])


# What it is bound to


async def test_another_letter_needs_to_be_allowed(journal: Path) -> None:
    end = MemoryTransport()
    await send_to(end, rows(1), journal)
    other = Letter("Hello {{ name }}", text="Dear {{ name }}, good bye.", sender=ADA)
    with pytest.raises(JournalError, match="another letter"):
        await send_to(end, rows(1, 2), journal, letter=other)
    await send_to(end, rows(1, 2), journal, letter=other, allow_changed=True)
    assert copies_in(end) == dict.fromkeys(addresses([1, 2]), 1)
    with pytest.raises(JournalError, match="another letter"):
        await send_to(end, rows(1, 2), journal)


async def test_two_runs_with_one_journal_at_once_are_an_error(journal: Path) -> None:
    async with FaultServer(final=Hang()) as server:
        running = asyncio.create_task(send_to(server.url, rows(1), journal))
        await server.reached("final")
        with pytest.raises(JournalError, match="another run is using this journal"):
            await send_to(MemoryTransport(), rows(1), journal)
        server.release()
        assert (await running).all_accepted


async def test_a_broken_list_sends_nothing_and_makes_no_journal(
    tmp_path: Path, journal: Path
) -> None:
    broken = write_list(tmp_path / "list.csv", 50)
    with broken.open("a") as file:
        file.write('"never closed,x\n')
    end = MemoryTransport()
    with pytest.raises(RecipientsError, match=r"list\.csv, line 52"):
        await send_to(end, broken, journal)
    assert not end.messages
    assert not journal.exists()


async def test_without_a_sender_there_is_nobody_to_send_it(journal: Path) -> None:
    with pytest.raises(ConfigError, match="sender: is missing"):
        await send_to(MemoryTransport(), rows(1), journal, letter=Letter("x", text="y"))


# What stops it


async def test_stopping_lets_those_under_way_finish_and_begins_no_others(journal: Path) -> None:
    stop = asyncio.Event()
    async with FaultServer(final=ByMessage([Hang(), Hang(), OK])) as server:
        url = f"{server.url}?max_connections=2&pipelining=no"
        running = asyncio.create_task(send_to(url, rows(*range(50)), journal, stop=stop))
        await server.reached("final", 2)
        stop.set()
        server.release()
        report = await running
        sent = copies_in(server)
    assert report.stopped == "it was interrupted"
    assert 2 <= len(sent) <= 6
    assert report.progress.accepted == len(sent)
    assert report.progress.unknown == report.progress.under_way == 0
    end = MemoryTransport()
    report = await send_to(end, rows(*range(50)), journal)
    assert copies_in(end) + sent == dict.fromkeys(addresses(range(50)), 1)
    assert report.all_accepted


async def test_cancelling_leaves_those_under_way_unknown(musts: Musts, journal: Path) -> None:
    async with FaultServer(final=Hang()) as server:
        url = f"{server.url}?max_connections=2"
        running = asyncio.create_task(send_to(url, rows(*range(20)), journal))
        await server.reached("final", 2)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        server.release()
        end = MemoryTransport()
        report = await send_to(end, rows(*range(20)), journal)
        sent = copies_in(server)
    listed = {each["to"] for each in report.entries("unknown")}
    assert sent.keys() <= listed
    assert not listed & copies_in(end).keys()
    assert listed | copies_in(end).keys() == addresses(range(20))


async def test_cancelled_while_the_journal_is_opened_it_leaves_none_open(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, fsync = asyncio.get_running_loop(), os.fsync
    opening, go_on = asyncio.Event(), threading.Event()

    def held(descriptor: int) -> None:
        loop.call_soon_threadsafe(opening.set)
        go_on.wait(10)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", held)
    running = asyncio.create_task(send_to(MemoryTransport(), rows(1), journal))
    await opening.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    go_on.set()
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})  # the one that opens it
    assert (await send_to(MemoryTransport(), rows(1), journal)).all_accepted


async def test_what_the_caller_raises_leaves_neither_list_nor_journal_open(
    tmp_path: Path, journal: Path
) -> None:
    def fail(_: Progress) -> None:
        raise LookupError

    recipients = write_list(tmp_path / "list.csv", 500)
    with pytest.raises(LookupError) as caught:
        await send_to(MemoryTransport(), recipients, journal, on_progress=fail)
    assert caught.value.__traceback__ is not None, "which holds the frames of the run"
    descriptors = Path("/proc/self/fd")
    held = (
        [os.path.realpath(each) for each in descriptors.iterdir()] if descriptors.exists() else []
    )
    assert not {str(recipients), str(journal)} & set(held)


async def test_it_gives_up_where_nothing_is_sent_any_more(journal: Path) -> None:
    end = End("one", *[lambda receipt: receipt] * 5, down())
    report = await send_to(end, rows(*range(500)), journal, give_up_after=20)
    assert report.stopped == "20 messages in a row were not sent: refused"
    assert report.progress.accepted == 5
    assert report.progress.not_sent < 40
    assert not report.all_accepted
    report = await send_to(MemoryTransport(), rows(*range(500)), journal)
    assert report.all_accepted


async def test_what_is_sent_in_between_is_a_reason_to_go_on(journal: Path) -> None:
    outcomes: list[t.Any] = [down(), down(), lambda receipt: receipt] * 20
    report = await send_to(End("one", *outcomes), rows(*range(60)), journal, give_up_after=8)
    assert report.stopped is None
    assert report.progress.not_sent == 40


async def test_it_gives_up_at_once_where_the_credentials_are_refused(journal: Path) -> None:
    report = await send_to(
        End("one", AuthenticationError("no", stage="auth")), rows(*range(50)), journal
    )
    assert report.stopped == "the credentials were refused: no"
    assert report.progress.not_sent < 20


async def test_rejections_and_vetoes_are_no_reason_to_give_up(journal: Path) -> None:
    for error in (rejected(), Vetoed("not today")):
        report = await send_to(
            End("one", error), rows(*range(30)), journal, give_up_after=3, retry_rejected=True
        )
        assert report.stopped is None


async def test_a_journal_that_cannot_be_written_stops_the_run(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, left = os.fsync, 6

    def full(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    end = At(lambda _: None)
    with pytest.raises(JournalError, match="cannot be written: No space left on device"):
        await send_to(end, rows(*range(100)), journal)
    assert len(end.sent) < 30
    monkeypatch.setattr(os, "fsync", fsync)
    rest = MemoryTransport()
    report = await send_to(rest, rows(*range(100)), journal)
    assert not set(end.sent) & copies_in(rest).keys()
    assert report.progress.accepted + report.progress.unknown == 100


# Rate, and where it is


async def test_the_rate_is_kept_and_what_waits_for_it_is_not_begun(journal: Path) -> None:
    waiting: list[int] = []

    def look(_: str) -> None:
        waiting.append(sum(each == ["begin"] for each in events_of(journal).values()))

    start = time.monotonic()
    await send_to(At(look, concurrency=10), rows(*range(12)), journal, rate="5/s")
    assert time.monotonic() - start >= 2, "the eleventh begins two seconds after the first"
    assert max(waiting) < 10


async def test_a_stop_does_not_wait_for_the_rate(journal: Path) -> None:
    stop = asyncio.Event()
    end = At(lambda _: stop.set())
    report = await send_to(end, rows(1, 2), journal, rate="1/day", stop=stop)
    assert end.sent == [address(1)]
    assert report.stopped == "it was interrupted"


async def test_progress_says_where_it_is(journal: Path) -> None:
    seen: list[Progress] = []
    await send_to(MemoryTransport(), rows(*range(10)), journal, on_progress=seen.append)
    assert [each.accepted for each in seen] == list(range(1, 11))
    assert {each.total for each in seen} == {10}
    assert seen[-1].under_way == 0
    assert seen[-1].rows == 10


async def test_of_rows_that_only_reading_counts_there_is_no_total(journal: Path) -> None:
    def few() -> Iterator[dict[str, str]]:
        yield from rows(1, 2)

    report = await send_to(MemoryTransport(), few(), journal)
    assert report.progress.total is None
    assert report.all_accepted


# Several relays


async def test_a_relay_that_dies_in_the_middle_gives_its_share_to_the_other(
    musts: Musts, journal: Path
) -> None:
    async with FaultServer() as one, FaultServer() as two:
        relays = RoundRobin([f"{each.url}?max_connections=3&max_messages=0" for each in (one, two)])
        running = asyncio.create_task(send_to(relays, rows(*range(400)), journal))
        await one.until(lambda: len(one.messages) >= 50)
        await one.aclose()
        report = await running
        copies = copies_in(one, two)
    assert one.connections <= 3
    assert two.connections <= 3
    listed = {each["to"] for each in report.entries("unknown")}
    assert {to for to, count in copies.items() if count != 1} == set()
    assert copies.keys() | listed == addresses(range(400))
    assert len(listed) <= 3 * 2
    assert report.progress.not_sent == report.progress.rejected == 0
    assert len(two.messages) > 200


async def test_failover_goes_on_over_the_second_relay(musts: Musts, journal: Path) -> None:
    async with FaultServer(final={41: Close()}) as one, FaultServer() as two:
        running = asyncio.create_task(send_to([one.url, two.url], rows(*range(200)), journal))  # type: ignore[arg-type]
        await one.until(lambda: len(one.messages) >= 41)
        await one.aclose()
        report = await running
        copies = copies_in(one, two)
    listed = {each["to"] for each in report.entries("unknown")}
    assert listed
    assert set(copies.values()) == {1}
    assert copies.keys() | listed == addresses(range(200))
    assert {relay for relay, _ in report.summary()["relays"].items()} >= {f"127.0.0.1:{two.port}"}
