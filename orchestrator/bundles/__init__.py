"""Signed manifests and content-addressed sections: fetch, verify, keep on disk, horizons, and the highest time seen.

Lives here: what edges and schedulers share to hold the law of both sides with the control plane down.
Never here: publishing (that is ``control``), or a decision (that is ``policy``).
"""
