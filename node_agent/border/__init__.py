"""The gate: label, permit, place, evidence, send. The only door to the uplink.

Lives here: the one call path by which a payload leaves the edge.
Never here: HTTP, or a second way out.
"""
