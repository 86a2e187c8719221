"""A bounded, durable, append-only store for evidence and usage records.

Lives here: framing with checksums, fsync, recovery of a torn tail, the bound and what happens at it.
Never here: the meaning of a record, but for `left`, which closes what a killed program left open, and
`refusing`, which says what is told where there is no record.
"""
