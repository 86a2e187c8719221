"""The conversation between our programs: frames, the two session machines, the error catalogue.

Lives here: total conversions in both directions, pure state machines (events in, instructions out), the one table from
error code to HTTP, gRPC and the OpenAI error object, and the one function each that makes a channel and a server.
Never here: a decision about law or placement. Outside this room only servicers touch generated protobuf classes.
"""
