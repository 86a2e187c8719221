"""Which pool, or replica, probably holds which prefix: an approximate index over hashes, bounded and expiring.

Hashes are of growing prefixes, each covering all before it, made by whoever holds the salt (`salted`): per tenant and
jurisdiction, so that two tenants with one prompt share nothing here, and nothing here says anything of a prompt. The
index never leaves the side that made it. It learns from its own placements at once (a burst of siblings follows the
first), and the engines' counts of cached tokens say how far it may be believed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from hashlib import blake2b
from typing import Generic, TypeVar

Holder = TypeVar("Holder", bound=Hashable)

ENTRIES_MAX = 1 << 17
"""Prefix blocks that an index remembers."""
KEEP_US = 600_000_000
"""How long an engine is taken to keep a prefix that nobody asked for again."""
HOLDERS_MAX = 8
"""Holders of one block that are remembered, the latest."""
BLOCK_CHARS = 1024
"""Characters of one block of text, where tokens are not known: about 256 tokens."""
BLOCKS_MAX = 512
BELIEF_SHARE = 0.1
"""Weight of one reply in how far a holder is believed."""
HASH_BYTES = 8


def salted(salt: bytes, texts: Sequence[str]) -> tuple[int, ...]:
    """Return the hash of each whole block of the texts joined, each covering all before it. `salt` is a secret."""
    joined = "\x00".join(texts)
    found: list[int] = []
    keyed, before = blake2b(key=salt, digest_size=HASH_BYTES), b""
    for start in range(0, min(len(joined) - BLOCK_CHARS + 1, BLOCKS_MAX * BLOCK_CHARS), BLOCK_CHARS):
        block = keyed.copy()
        block.update(before)
        block.update(joined[start : start + BLOCK_CHARS].encode("utf-8", "surrogatepass"))
        before = block.digest()
        found.append(int.from_bytes(before, "big") >> 1)  # 63 bits: what a trace and every reader of it can hold
    return tuple(found)


def any_block(texts: Sequence[str]) -> bool:
    """Whether the texts joined hold a whole block: a salt for less is made for nothing."""
    return sum(map(len, texts)) + len(texts) > BLOCK_CHARS


class PrefixIndex(Generic[Holder]):
    """Remembers who was sent which blocks. Least recently used out."""

    def __init__(self, entries_max: int = ENTRIES_MAX, keep_us: int = KEEP_US) -> None:
        self._entries_max = entries_max
        self._keep_us = keep_us
        # Ordered: to find the first of a plain dictionary, it steps over all that went before.
        self._held: OrderedDict[int, tuple[tuple[Holder, int], ...]] = OrderedDict()  # bounded: entries_max
        """By block: holders, and when they were sent it, the latest last. Blocks of one prompt share the value."""
        self._belief: dict[Holder, float] = {}

    def __len__(self) -> int:
        return len(self._held)

    def expect(self, blocks: Sequence[int], now_us: int) -> dict[Holder, int]:
        """Return, for each holder, how many leading blocks it was sent lately."""
        held, oldest = self._held, now_us - self._keep_us
        found: dict[Holder, int] = {}
        alive: list[Holder] | None = None
        before: tuple[tuple[Holder, int], ...] | None = None
        for number, block in enumerate(blocks):
            holders = held.get(block)
            if holders is None:
                break
            if holders is not before:
                before = holders
                lately = [holder for holder, at in holders if at >= oldest]
                alive = lately if alive is None else [holder for holder in alive if holder in lately]
            if not alive:
                break
            for holder in alive:
                found[holder] = number + 1
        return found

    def tokens(self, holder: Holder, blocks: int, block_tokens: int, prompt_tokens: int) -> int:
        """Return the tokens that `blocks` leading blocks probably save at `holder`, after what replies said of it."""
        whole = min(blocks * block_tokens, max(0, prompt_tokens - 1))
        return int(whole * self._belief.get(holder, 1.0))

    def insert(self, holder: Holder, blocks: Sequence[int], now_us: int) -> None:
        """A request with these blocks was sent to `holder`."""
        held = self._held
        alone: tuple[tuple[Holder, int], ...] = ((holder, now_us),)
        before: tuple[tuple[Holder, int], ...] | None = None
        after = alone
        # The last block first: what goes for want of room is the end of a prompt, for without its head none is found.
        for block in reversed(blocks):
            holders = held.get(block)
            if holders is None:
                held[block] = alone
                continue
            if holders is not before:
                others = [other for other in holders if other[0] != holder]
                before, after = holders, (*others[1 - HOLDERS_MAX :], *alone)
            held[block] = after
            held.move_to_end(block)
        while len(held) > self._entries_max:
            held.popitem(last=False)

    def corrected(self, holder: Holder, expected_tokens: int, cached_tokens: int) -> None:
        """An engine said how many tokens it held; `expected_tokens` were expected before belief."""
        if expected_tokens <= 0:
            return
        share = min(1.0, cached_tokens / expected_tokens)
        before = self._belief.get(holder, 1.0)
        self._belief[holder] = before + (share - before) * BELIEF_SHARE

    def forget(self, holder: Holder) -> None:
        """A holder started anew: what it held is gone."""
        self._belief.pop(holder, None)
        before: tuple[tuple[Holder, int], ...] | None = None
        others: tuple[tuple[Holder, int], ...] = ()
        for block, holders in list(self._held.items()):
            if holders is not before:  # the blocks of one prompt lie together, and share theirs
                before, others = holders, tuple([other for other in holders if other[0] != holder])
            if not others:
                del self._held[block]
            elif len(others) < len(holders):
                self._held[block] = others
