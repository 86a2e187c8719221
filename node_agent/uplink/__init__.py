"""Thin I/O around the session machine, the in-region engines and the watch of control.

Lives here: sockets, tasks and timers.
Never here: a decision. Only ``border`` calls it with a payload.
"""
