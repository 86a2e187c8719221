"""When the number of processes changes, each idempotency key moves to the process that answers for it from now on.

Otherwise the new owner would not know a key of the last 24 hours, and send its request again. Done before anything of
the edge runs, and again from the beginning when it was interrupted: a key is first written where it goes, then
forgotten where it was, so at every moment it is held somewhere, and it is looked for everywhere.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path

from node_agent.idempotency.rules import KeyDigest, owner
from node_agent.idempotency.store import Bounds, KeyStore, StoreError
from node_agent.settings import EdgeSettings
from orchestrator.bundles.store import write_whole
from orchestrator.watch.places import folder_of, folders_in, private_folder, run_folder

ROWS = 64
"""Keys that are moved in one transaction."""
PROCESSES = "processes"
"""Name of the file that says over how many processes the keys are spread. Without it, they are all in one place."""


def settle_keys(settings: EdgeSettings) -> None:
    """Bring every key to the process that answers for it. Raises OSError: then nothing may start.

    Costs one small read where the number of processes is what it was.
    """
    data_dir = Path(settings.data_dir)
    note = run_folder(data_dir) / PROCESSES
    if _noted(note) == settings.processes:
        return
    private_folder(note.parent)
    try:
        _move(data_dir, settings)
    except StoreError as failure:
        raise OSError(f"idempotency keys cannot be moved to the processes that answer for them: {failure}") from None
    write_whole(note, b"%d\n" % settings.processes)


def _noted(note: Path) -> int:
    try:
        text = note.read_text("ascii").strip()
    except FileNotFoundError:
        return 1
    # What cannot be read is no number of processes: everything is looked through.
    return int(text) if text.isdigit() and len(text) <= 4 else 0


def _move(data_dir: Path, settings: EdgeSettings) -> None:
    """Raises StoreError and OSError."""
    with ExitStack() as opened:
        stores: dict[int, KeyStore] = {}

        def store_of(index: int) -> KeyStore:
            if index not in stores:
                path = folder_of(data_dir, index) / "idempotency" / "keys.db"
                stores[index] = opened.enter_context(closing(KeyStore(path, _bounds(settings))))
            return stores[index]

        for index, folder in tuple(folders_in(data_dir)):
            if (folder / "idempotency" / "keys.db").exists():
                source = store_of(index)
                for to, keys in _astray(source, index, settings.processes).items():
                    for at in range(0, len(keys), ROWS):
                        _carry(source, store_of(to), keys[at : at + ROWS])


def _bounds(settings: EdgeSettings) -> Bounds:
    """Return the whole of the edge's bounds, for each: what was held has its room, whatever the shares are now."""
    entries, size = settings.idempotency_keys_max, settings.idempotency_results_bytes
    return Bounds(entries, entries, size, size)


def _astray(source: KeyStore, index: int, processes: int) -> dict[int, list[KeyDigest]]:
    """Return the keys that are not where they are looked for from now on, by where that is."""
    found: dict[int, list[KeyDigest]] = {}
    with source.transaction():
        for key in source.held_keys():
            to = owner(key, processes)
            if to != index:
                found.setdefault(to, []).append(key)
    return found


def _carry(source: KeyStore, to: KeyStore, keys: list[KeyDigest]) -> None:
    with source.transaction():
        moved = [source.whole(key) for key in keys]
    with to.transaction():
        for one in moved:
            to.take_in(one)
    with source.transaction():
        for one in moved:
            source.let_go(one)
