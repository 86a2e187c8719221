"""The messages of Tidegate, by version.

Lives here: one package per version of the wire.
Never here: anything that was not generated.
"""
