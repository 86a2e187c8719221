"""The operator's commands about the law: check it, compare it, show it, and explain a decision by it. Read only.

Lives here: reading declared folders, exported bundles and spools on this machine, and showing what the law says.
Never here: a decision of its own: it asks the code that decides. Nor anything that publishes or sends.
"""
