"""Networks and learning: arrays, specifications and paths in; weights, figures and ONNX models out.

Knows nothing of HTTP, of a database or of the service. The command line is the whole contract: `python -m models
--help`.
"""
