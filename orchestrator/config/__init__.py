"""Settings of the programs: one YAML file plus environment overrides, frozen, printed with secrets masked.

Lives here: the only code that reads configuration files and environment variables.
Never here: a default that opens something, or a setting that changes after the start.
"""
