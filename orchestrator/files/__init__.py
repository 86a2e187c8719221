"""Strict loading of what people and tenants write: declared files, label headers, chat requests.

Lives here: text to domain values, with errors that name file, line, field and fix.
Never here: the network, a default that widens a permission, or an error that repeats a payload.
"""
