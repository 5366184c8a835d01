"""Queues: each message is leased to one consumer at a time until somebody acknowledges it.

`port.Queue` is the contract. `sqlite.SqliteQueue` is the default, `memory.MemoryQueue` keeps nothing,
`shared.SharedMemoryQueue` is for processes on one machine, `redis.RedisQueue` for several machines.
"""

from sage.platform.queue.port import (
    DeadLetter,
    Lease,
    LeaseLostError,
    Message,
    Queue,
    QueueOptions,
    QueueStats,
)

__all__ = ["DeadLetter", "Lease", "LeaseLostError", "Message", "Queue", "QueueOptions", "QueueStats"]
