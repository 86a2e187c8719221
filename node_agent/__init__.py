"""The edge: takes tenants' OpenAI-style requests at one region and sends each where it may go.

Lives here: the HTTP surface (`front`), the gate (`border`), the links to schedulers, engines and control (`uplink`).
Never here: Ray, torch, Kubernetes, an etcd client, or a way around the gate.
"""
