"""Keeps instantiated kernels at hand, ready to be grafted at once, within a budget of bytes.

`admission` puts verified blocks in and takes them out for seeds. A block that is taken belongs to its
seed and will learn; the next seed needs one with fresh weights, which `spent` asks for.
"""

from dataclasses import dataclass

import torch

from esper.kasmina.kernels import Block

DEFAULT_CACHE_BYTES = 256 << 20
"""256 MiB: hundreds of blocks of usual widths, and little beside a model worth growing."""

type CacheKey = tuple[str, torch.device]
"""A kernel's id and the device that its block is on."""


@dataclass(frozen=True, kw_only=True)
class CacheStatus:
    """How a cache has done so far."""

    hits: int
    """Blocks that were handed out ready."""
    misses: int
    """Blocks that were asked for and not there."""
    evictions: int
    """Blocks that were dropped for lack of room before they were used."""
    num_blocks: int
    num_bytes: int
    """Parameters and buffers of the blocks at hand, in bytes."""
    max_bytes: int


class KernelCache:
    """A least-recently-used cache of blocks; for the training thread only.

    Its content was verified when it came in, is in this process's memory, and nobody else has a
    reference to it, so it is handed out without another look.
    """

    def __init__(self, max_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes={max_bytes}; expected 0 (keep nothing) or more")
        self._max_bytes = max_bytes
        # Both in order of use, the least recent first; a block with its size. A spent key has no
        # block: it remembers what to make again.
        self._blocks: dict[CacheKey, tuple[Block, int]] = {}
        self._spent: dict[CacheKey, None] = {}
        self._num_bytes = 0
        self._hits = self._misses = self._evictions = 0

    @property
    def status(self) -> CacheStatus:
        """How the cache has done so far."""
        return CacheStatus(
            hits=self._hits,
            misses=self._misses,
            evictions=self._evictions,
            num_blocks=len(self._blocks),
            num_bytes=self._num_bytes,
            max_bytes=self._max_bytes,
        )

    @property
    def spent(self) -> tuple[CacheKey, ...]:
        """What was asked for since it was last put in, the latest last; `put` it to be ready again."""
        return tuple(self._spent)

    def put(self, key: CacheKey, block: Block) -> None:
        """Keep `block`, which nobody else may use any more, and drop the least recently used for it.

        A block that is larger than the whole budget is not kept, and drops nothing.
        """
        self._spent.pop(key, None)
        self._forget(key)
        size = num_bytes_of(block)
        if size > self._max_bytes:
            return
        while self._num_bytes + size > self._max_bytes:
            self._forget(next(iter(self._blocks)))
            self._evictions += 1
        self._blocks[key] = (block, size)
        self._num_bytes += size

    def take(self, key: CacheKey) -> Block | None:
        """Hand out a block for good; None if there is none ready."""
        self._spent.pop(key, None)
        self._spent[key] = None
        block = self._forget(key)
        if block is None:
            self._misses += 1
        else:
            self._hits += 1
        return block

    def _forget(self, key: CacheKey) -> Block | None:
        found = self._blocks.pop(key, None)
        if found is None:
            return None
        block, size = found
        self._num_bytes -= size
        return block


def num_bytes_of(block: Block) -> int:
    """Return the bytes of the parameters and buffers of `block`."""
    tensors = (*block.parameters(), *block.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
