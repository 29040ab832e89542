"""Oona, Esper's message bus: typed envelopes on topics, at-least-once, in memory or over Redis."""

from esper.oona.delivery import BusDelivery
from esper.oona.memory import MemoryBus, open_memory_bus
from esper.oona.redis_streams import RedisBus, open_redis_bus

__all__ = ["BusDelivery", "MemoryBus", "RedisBus", "open_memory_bus", "open_redis_bus"]
