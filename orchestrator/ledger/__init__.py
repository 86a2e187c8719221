"""What was used and what it is worth: usage records and rating, in integers.

Lives here: pure values and functions; tokens are integers, money is pico-units with an ISO 4217 code.
Never here: I/O, a clock, a float, or a payload.
"""
