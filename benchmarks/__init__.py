"""What Tidegate costs, measured on one machine against the same engine called directly.

Lives here: a stand of real processes, an engine that answers at once, a client that times, and the tables.
Never here: anything that a program imports, or a figure of another run.
"""
