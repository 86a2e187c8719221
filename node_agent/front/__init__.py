"""The OpenAI surface for tenants: HTTP, server-sent events, API keys, limits.

Lives here: bytes to a checked request and back.
Never here: a choice of pool, a label decided, or a byte sent anywhere but to the tenant.
"""
