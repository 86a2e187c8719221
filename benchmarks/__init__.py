"""What Tidegate costs, measured on one machine against the same engine called directly.

Lives here: a stand of real processes, an engine that answers at once, a streaming client, and what they are measured by.
Never here: anything that a program imports, or a figure that was measured in another run.
"""
