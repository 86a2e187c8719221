"""A program that is several processes: the watch that keeps them running, and what ties each of them to it.

Lives here: what is the same for every such program: even and leased shares, folders, names, starting and
stopping.
Never here: a port that is served, a secret, a byte of a request in clear, or what only one program works with.
"""
