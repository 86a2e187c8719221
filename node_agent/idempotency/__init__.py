"""One send per `Idempotency-Key`: what was asked under which key, what became of it, and the result where it is kept.

Lives here: the rules, the digests, the durable store of keys, and the desk at which the front hands a key in.
Never here: a key, a body or a result in clear on a disk, or a decision about where a payload may go.
"""
