"""The watch of an edge that is several processes: it shares the limits out, and keeps the processes running.

Lives here: who has which part of a limit, the folders of the processes, what is made ready before they start, and
starting and stopping them.
Never here: a port for tenants, a secret, a byte of a request in clear, or anything else that an edge works with.
"""
