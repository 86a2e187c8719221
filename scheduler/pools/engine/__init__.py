"""The embedded engine: one torch model, one thread, many answers at once. Knows nothing of Ray.

Lives here: the slot cache, the batch, sampling, the text of an answer, prompt rendering, the identity of a model.
Never here: a socket, a law, a tenant, a clock that decides what is generated, or payload in a log or an error.
"""
