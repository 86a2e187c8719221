"""What is an edge's own of being several processes: who has which part of its limits, and who answers for which key.

Lives here: the settings of each process, and the keys that move when their number changes. `orchestrator.watch` is the
rest.
Never here: a port for tenants, a secret, a byte of a request in clear, or anything else that an edge works with.
"""
