"""The operator's command ``tidegate``, and ``tidegate up``, which runs the whole house on one machine.

Lives here: subcommands, the supervisor of processes, the border proxy that emulates distance.
Never here: an import of a program. Programs are started as processes.
"""
