"""Version 1 of the messages of Tidegate.

Lives here: the .proto files and, beside each, its stubs.
Never here: anything that was not generated.
"""
