"""What was decided, in bytes that anyone can check: decision records and their canonical form.

Lives here: pure builders of records, canonical bytes (RFC 8785) and keyed commitments.
Never here: I/O, a clock, randomness, or a payload: a record holds digests, counts, labels, rule ids, places and times.
"""
