"""The messages between the programs, as classes that protoc wrote.

Lives here: .proto files and what `make protos` makes of them.
Never here: a line of logic. Only orchestrator.wire and the servicers import it.
"""
