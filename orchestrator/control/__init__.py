"""The control plane of one side: registry (etcd), publication of signed bundles, exchange with the other side, status.

Lives here: everything that runs once per side and off the data path.
Never here: a request of a tenant, or an import of ``node_agent`` or ``scheduler``.
"""
