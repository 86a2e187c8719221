"""The data path side by side: the engine called directly, through rivals' routers, and through Tidegate.

Lives here: starting every system against one engine, load on each in turn, what it came to as tables, a drawing and a
section of docs/performance.md. Load comes from `wrk`, or from a client of ours where wrk cannot do it.
Never here: a cost that the product pays for being measured.
"""
