"""Wire protocols: thin adapters over `commitcast.subscription`."""
