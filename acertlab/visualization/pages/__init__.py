"""Pages that need no network: a data set's certificate, an analysis of many runs, an executed notebook."""
