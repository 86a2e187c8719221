"""Replicas and the engines in them. The only room that imports ray, torch and transformers.

Lives here: the Ray driver (a process of its own), the replica actors, the embedded engine, model preparation.
Never here: a tenant, a law, or a socket that listens.
"""
