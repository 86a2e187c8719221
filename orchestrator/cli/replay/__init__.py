"""The operator's commands about placement: `replay`, `whatif`, `canary`.

Lives here: files in, the live placement code run over them, tables, JSON and pages out.
Never here: a placement rule of its own, or anything that acts on a running system.
"""
