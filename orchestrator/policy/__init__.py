"""The law as code: ids, jurisdictions, entities, places, labels, packs, and permit.

Lives here: pure values and total functions over them, with the standard library alone.
Never here: I/O, a clock, randomness, a third-party import, a float, or knowledge of cost.
"""
