"""Even shares of a limit, one for each process of a program. Pure.

Together they are the whole, so where they are fixed no lock and no message between processes is needed to keep within
it; what one process leaves idle, another cannot use. Of some limits `leases` lends it.
"""

from __future__ import annotations


def share(whole: int, processes: int, index: int) -> int:
    """Return the part of `whole` that process `index` of `processes` has. No two differ by more than one.

    The parts add up to the whole. Raises ValueError for a process that there is not, and for less than nothing.
    """
    if whole < 0 or not 0 <= index < processes:
        raise ValueError("expected a whole of at least 0, and an index below the number of processes")
    part, left = divmod(whole, processes)
    return part + (index < left)
