"""Every metric name, log field and its allowed values, in one place.

Lives here: the allow-list and the loggers and registries that enforce it.
Never here: a payload, a secret, or a name made at run time.
"""
