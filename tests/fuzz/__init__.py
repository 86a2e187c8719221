"""Bytes from outside, against every reader of them: one function per reader that fails only when there is a bug."""
