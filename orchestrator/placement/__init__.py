"""The choice among the permitted pools: feasibility, cost in money, pick, and the reasons for each.

Lives here: pure functions over a frozen fleet snapshot and request facts; time and randomness come as parameters.
Never here: I/O, a clock, a law (that is ``policy``), or a payload.
"""
