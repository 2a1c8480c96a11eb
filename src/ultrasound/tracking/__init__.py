"""Everything that MLflow keeps: runs, models, the registry, the served model."""
