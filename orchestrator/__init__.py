"""The shared ground of Tidegate, the control plane of one side, and the operator's command.

Lives here: the law (`policy`), the choice (`placement`), money and proof (`ledger`, `evidence`), the shared edges
(`wire`, `engines`, `bundles`, `files`, `spool`, `telemetry`, `config`), the control plane (`control`), the command
(`cli`).
Never here: anything that only an edge agent or only a scheduler needs.
Imports point downwards only; `.importlinter` holds the order.
"""
