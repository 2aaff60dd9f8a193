"""What in the settings of a Celery app would lose mail, make doubles of it or hold it up.

Celery's own defaults are for work that may be lost: a job is acknowledged before it is done, one
whose process is killed is gone, and RabbitMQ need not have it when ``send_later`` returns.
"""

from __future__ import annotations

import typing as t

if t.TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery
    from celery.app.task import Task

RESTORES = ("unacked_restore_interval", "unacked_restore_throttle")
_CONSUMER_TIMEOUT = 1800
"""Seconds after which RabbitMQ takes a job back from a worker that has not acknowledged it."""


def complaints(
    app: Celery, task: Task, *, longest_pause: float, time_limit: float
) -> tuple[str, ...]:
    """Say what is wrong with the settings of an app, each with what to write.

    ``longest_pause`` is how many seconds a worker may hold a job that is for later, ``time_limit``
    how many one try may take. Nothing is asked of the broker.
    """
    return (
        *_of_the_task(task, time_limit),
        *_of_the_app(app),
        *_of_the_broker(app, longest_pause + time_limit),
    )


def _of_the_task(task: Task, time_limit: float) -> Iterator[str]:
    """Look at what the task has in the end: ``task_annotations`` win over what it was made with."""
    if not task.acks_late:
        yield (
            "acks_late is off: a job is lost with the worker that has it; take it out of "
            f"task_annotations, or leave {task.name} out of them"
        )
    if not task.reject_on_worker_lost:
        yield (
            "reject_on_worker_lost is off: a job is lost with the process that has it, as when "
            "memory runs out; acks_late alone does not keep it; take it out of task_annotations"
        )
    if task.acks_on_timeout:
        yield (
            "acks_on_timeout is on: a job that task_time_limit ends is lost; take it out of "
            "task_annotations"
        )
    if task.serializer != "json":
        yield f"serializer is {task.serializer!r}: jobs are JSON; take it out of task_annotations"
    limits = [limit for limit in (task.time_limit, task.soft_time_limit) if limit]
    if limits and min(limits) <= time_limit:
        yield (
            f"task_time_limit or task_soft_time_limit is {min(limits):g} s and one try may take "
            f"{time_limit:g} s: what it ends is then unknown, or sent twice; annotate {task.name} "
            f"with limits over {time_limit:g} s"
        )


def _of_the_app(app: Celery) -> Iterator[str]:
    conf = app.conf
    accepted = {str(name) for name in conf.accept_content or ()}
    if not accepted & {"json", "application/json"}:
        yield 'accept_content is without "json": workers throw jobs away unread; add it'
    if accepted & {"pickle", "application/x-python-serialize"}:
        yield (
            'accept_content has "pickle": whoever can write to the broker can run code in the '
            'workers; write accept_content = ["json"]'
        )
    if conf.task_always_eager:
        yield "task_always_eager is on: send_later sends at once, and nothing is queued"
    if conf.task_default_delivery_mode in {1, "transient"}:
        yield (
            "task_default_delivery_mode is transient: the broker loses what it has when it "
            "restarts; leave it out"
        )


def _of_the_broker(app: Celery, longest: float) -> Iterator[str]:
    connection = app.connection_for_read()
    kind = connection.transport.driver_type
    options = connection.transport_options
    if kind == "redis":
        yield from _of_redis(options, longest)
    elif kind == "amqp":
        yield from _of_rabbitmq(app.connection_for_write().transport_options, longest)
    elif kind == "memory":
        yield "the broker is memory://: no other process sees what is queued, and none keeps it"
    else:
        yield (
            f"the broker is {kind}: what it keeps, and whether it delivers again what a worker did "
            "not acknowledge, was tried with RabbitMQ and Redis only"
        )


def _of_redis(options: t.Mapping[str, t.Any], longest: float) -> Iterator[str]:
    timeout = options.get("visibility_timeout")
    if timeout is None:
        yield (
            "visibility_timeout is not set: what a killed worker had waits for an hour; write "
            f'broker_transport_options = {{"visibility_timeout": {_above(longest)}}}'
        )
    elif timeout <= longest:
        yield (
            f"visibility_timeout is {timeout:g} s, and a worker may hold a job for {longest:g} s: "
            f"another worker then sends it too; write {_above(longest)}"
        )
    missing = [name for name in RESTORES if name not in options]
    if missing:
        yield (
            f"{' and '.join(missing)} not set: what a killed worker had is looked for every 100 s "
            "only; write broker_transport_options = "
            '{"unacked_restore_interval": 10, "unacked_restore_throttle": 1}'
        )


def _of_rabbitmq(options: t.Mapping[str, t.Any], longest: float) -> Iterator[str]:
    if not options.get("confirm_publish"):
        yield (
            "confirm_publish is off: send_later returns before RabbitMQ has the job, and does not "
            'hear of a refusal; write broker_transport_options = {"confirm_publish": True}'
        )
    if longest >= _CONSUMER_TIMEOUT:
        yield (
            f"a worker may hold a job for {longest:g} s, and RabbitMQ takes it back after "
            f"{_CONSUMER_TIMEOUT} s (consumer_timeout): another worker then sends it too; lower "
            "longest_pause"
        )


def _above(seconds: float) -> int:
    """Return a round number of seconds well above."""
    return int(seconds // 600 + 1) * 600
