"""Placement compared with what others published, in the same simulated world, on the same requests.

Lives here: the worlds and traffic of the comparison, the rival routers, and the tables that come of it.
Never here: anything that a program imports, the law itself, or a figure of another run.
"""
