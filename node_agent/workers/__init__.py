"""One edge as several processes on one machine: the watch that keeps them, their shares, and what passes between them.

Lives here: who has which part of a limit, the folders and local sockets, starting and stopping, and the relay of one
request to the process that answers for its key.
Never here: a label, a law, a pool, or a connection to anything but a process of this same edge.
"""
