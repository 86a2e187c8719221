"""Engines that run elsewhere: a strict client for OpenAI-compatible servers, and the values every engine speaks.

Lives here: the generation request and its events, the HTTP and SSE client, health probes.
Never here: policy, a URL that came from a request, or a response passed through unread.
"""
