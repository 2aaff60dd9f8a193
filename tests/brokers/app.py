"""The Celery app of the tests: where its broker, server and ledger are is in the environment.

celery -A tests.brokers.app worker
"""

from __future__ import annotations

import json
import os

from celery import Celery

from amail import Mailer
from amail.queues.celery import CeleryQueue
from amail.queues.redis_ledger import RedisLedger

celery = Celery("shop", broker=os.environ["TEST_BROKER"])
celery.conf.update(json.loads(os.environ.get("TEST_SETTINGS", "{}")))

_ledger = os.environ.get("TEST_LEDGER")
queue = CeleryQueue(
    celery,
    Mailer(os.environ["TEST_SMTP"], max_connections=1),
    ledger=RedisLedger(_ledger, lease=4.0) if _ledger else None,
    time_limit=3.0,
    first=0.5,
    longest=1.0,
)
