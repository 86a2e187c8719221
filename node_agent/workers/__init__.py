"""What the processes of one edge are to each other: a request goes to the one that answers for its key.

Lives here: the local sockets, and the relay of one request and its answer.
Never here: a label, a law, a pool, or a connection to anything but a process of this same edge.
"""
