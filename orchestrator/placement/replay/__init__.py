"""Replay: recorded or public traffic run through the live placement code in a world with a virtual clock.

Lives here: the world (edges, pools, links, outages), the replica model, the event loop, the routers' protocol, and the
account of a run. Pure: requests, a world and seeded chance in, outcomes out.
Never here: files, plots, a real clock, a law (permits come in as a function), or a rival router (those are benchmarks).
"""
