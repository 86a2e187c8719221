"""Settings of the programs: one YAML file plus environment overrides, frozen, printed with secrets masked.

Lives here: the only code that reads configuration files and environment variables, and what a program takes from its
surroundings beside them: its loop and signals, and random bytes for ids.
Never here: a default that opens something, or a setting that changes after the start.
"""
