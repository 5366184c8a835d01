"""The web studio: a status page of the running stack, on loopback, behind a one-time login link."""
