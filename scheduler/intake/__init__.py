"""The socket of a site: sessions with edges, the second permit, admission, the queue and the choice of a replica.

Lives here: a plain process that keeps serving live replicas while Ray is gone.
Never here: an import of Ray, torch or transformers.
"""
