"""Shadow and audit: what an app's own sending does wrong, judged without touching it."""
