"""The served model over HTTP: the model behind a guard, and predictions of whole folders."""
