"""Later and elsewhere: a message as a job, a spool in a folder, and what brings jobs to workers.

Each queue is a module of its own, so that none needs what another does.
"""

from amail.queues.job import Handled, Job, handle, has_expired, key_of, pack, rest_of, unpack

__all__ = ["Handled", "Job", "handle", "has_expired", "key_of", "pack", "rest_of", "unpack"]
