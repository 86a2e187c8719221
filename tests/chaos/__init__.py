"""Real faults on the real programs: scenarios of events and checks, and the soak.

Lives here: the stand, its engines and its fault proxy, the load that knows every token of every answer, the scenarios,
and what is checked after each of them in the records of both sides.
Never here: an import by the product, a fault on anything but processes of the stand, and any address but loopback.
"""
