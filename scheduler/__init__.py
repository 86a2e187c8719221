"""One domestic site: takes permitted work from edges and gives it to replicas on labelled GPU nodes.

Lives here: the intake (`intake`), which owns the socket, and the pools (`pools`), which own Ray and the engines.
Never here: a token through Ray, or a tenant's credential.
"""
