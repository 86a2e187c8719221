"""The replica model of a replay against real engines, and what the live placement predicts against what comes.

Lives here: probes of the embedded engine, the fit, replays of what it was asked, published figures, and their tables.
Never here: the replica model itself, parameters of the comparison, or anything that a program imports.
"""
