"""The bundled model and its data."""
