"""The IR: attributes, ops, graphs, parameters, models, and the verifier."""
