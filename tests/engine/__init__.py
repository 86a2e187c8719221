"""The embedded engine, on a tiny random model that takes a millisecond a step, and once on the real one."""
