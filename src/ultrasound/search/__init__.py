"""The search for better parameters: Optuna's study, its workers, and what each trial leaves in MLflow."""
